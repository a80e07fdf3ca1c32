"""Which system calls inference needs, and the filter that leaves a worker only these.

Everything else gets EPERM: no other process can be reached, no program started, no socket made, no kernel
feature probed that inference does not use. Calls that a library only tries get ENOSYS, after which it takes
its older way. Found by running CPython, NumPy, Pillow, PyTorch, ONNX Runtime and OpenVINO under ``strace``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from cloister.serve.sandbox.bpf import Action, Allow, Answer, Check, assemble
from cloister.serve.sandbox.kernel import machine, system_call
from cloister.serve.sandbox.numbers import UNKNOWN_FROM, numbers_of

_SET_MODE_FILTER = 1
_TSYNC = 1

_FREELY = """
read write pread64 pwrite64 readv writev preadv pwritev preadv2 pwritev2 lseek close close_range dup dup2 dup3
pipe pipe2 open openat creat stat fstat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat
getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link
linkat symlink symlinkat ftruncate fallocate fadvise64 readahead fsync fdatasync sync_file_range flock statfs
fstatfs umask sendfile copy_file_range
mmap munmap mremap mprotect madvise brk msync mincore mlock mlock2 munlock mlockall munlockall pkey_alloc
pkey_free pkey_mprotect mbind set_mempolicy get_mempolicy membarrier
futex set_robust_list rseq set_tid_address exit exit_group rt_sigaction rt_sigprocmask rt_sigreturn
rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack restart_syscall pause alarm getitimer setitimer wait4
waitid arch_prctl
getpid gettid getppid getpgrp getpgid getsid getuid geteuid getgid getegid getgroups getresuid getresgid
capget
clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times getrusage sysinfo uname getrandom
getcpu getrlimit sched_yield sched_getaffinity sched_getparam sched_getscheduler sched_get_priority_max
sched_get_priority_min sched_getattr getpriority sched_rr_get_interval
poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd
eventfd2 timerfd_create timerfd_settime timerfd_gettime signalfd signalfd4
recvfrom sendto recvmsg sendmsg getsockopt getsockname getpeername shutdown
"""
"""Calls that reach only the process itself, or files, which Landlock and the mount namespace decide on."""

_NEVER = """clone3 openat2 memfd_create"""
_UNSUPPORTED = """getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr setxattr lsetxattr fsetxattr"""
_PRETENDED = """chmod fchmod fchmodat utime utimes utimensat futimesat"""
"""Landlock does not restrict them, and copying a file makes them: they succeed and change nothing."""

_CLONE_THREAD = 0x10000
_CLONE_NEW = 0x7E020080
"""Every flag of ``clone`` that asks for a new namespace."""
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE_MASK = 1, 1, 0xF
_MAP_SHARED_ANONYMOUS = 0x21
_PR_ALLOWED = (3, 15, 16, 21, 23, 27, 30, 39, 52, 0x53564D41)
"""GET_DUMPABLE, SET_NAME, GET_NAME, GET_SECCOMP, CAPBSET_READ, GET_SECUREBITS, GET_TIMERSLACK,
GET_NO_NEW_PRIVS, GET_SPECULATION_CTRL, SET_VMA."""
_FCNTL_ALLOWED = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032, 1034)
"""Duplicates, flags, locks, sizes. Not F_SETOWN with F_SETSIG: they send any signal to any of the user's
processes."""
_IOCTL_ALLOWED = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""
_IOCTL_REFUSED = (0x5412, 0x541C, 0x5452, 0x8901, 0x8902)
"""TIOCSTI, TIOCLINUX, FIOASYNC, FIOSETOWN, SIOCSPGRP: refused even where a device's own calls are allowed."""


def worker_rules(
    *,
    pid: int,
    processes: bool = False,
    signals: bool = False,
    devices: bool = False,
    memory_limit: bool = False,
) -> dict[str, Action]:
    """Action by name of the call.

    Args:
        pid: the worker's own number; the only process that it may signal.
        processes: other programs and processes may be started.
        signals: any process may be signalled, as far as Landlock lets it.
        devices: the worker drives a GPU: any ``ioctl``, UNIX sockets, memory files.
        memory_limit: no anonymous memory that is shared, which ``RLIMIT_DATA`` does not count.
    """
    own = Allow((Check(0, (pid,)),))
    self_only = Allow((Check(0, (0, pid)),))
    rules: dict[str, Action] = dict.fromkeys(_FREELY.split(), Allow())
    rules.update(dict.fromkeys(_NEVER.split(), Answer(errno.ENOSYS)))
    rules.update(dict.fromkeys(_UNSUPPORTED.split(), Answer(errno.ENOTSUP)))
    rules.update(dict.fromkeys(_PRETENDED.split(), Answer(0)))
    rules.update(
        clone=Allow((Check(0, (_CLONE_THREAD,), mask=_CLONE_THREAD | _CLONE_NEW),)),
        kill=own,
        tgkill=own,
        prlimit64=self_only,
        sched_setaffinity=self_only,
        move_pages=self_only,
        prctl=Allow((Check(0, _PR_ALLOWED),)),
        fcntl=Allow((Check(1, _FCNTL_ALLOWED),)),
        ioctl=Allow((Check(1, _IOCTL_ALLOWED),), otherwise=errno.ENOTTY),
        # A datagram pair could be sent from to any other UNIX socket.
        socketpair=Allow((Check(0, (_AF_UNIX,)), Check(1, (_SOCK_STREAM,), mask=_SOCK_TYPE_MASK))),
    )
    if processes:
        rules.update(
            clone=Allow((Check(0, (0,), mask=_CLONE_NEW),)),
            fork=Allow(),
            vfork=Allow(),
            execve=Allow(),
        )
    if signals:
        rules.update(kill=Allow(), tgkill=Allow())
    if devices:
        rules.update(
            ioctl=Allow((Check(1, _IOCTL_REFUSED, negated=True),)),
            socket=Allow((Check(0, (_AF_UNIX,)), Check(1, (_SOCK_STREAM,), mask=_SOCK_TYPE_MASK))),
            memfd_create=Allow(),
        )
    if memory_limit:
        shared = Check(3, (_MAP_SHARED_ANONYMOUS,), mask=_MAP_SHARED_ANONYMOUS, negated=True)
        rules["mmap"] = Allow((shared,), otherwise=errno.ENOMEM)
    return rules


def compile_filter(rules: dict[str, Action], on: str) -> bytes:
    """The filter for one machine. Calls that it does not have are left out."""
    numbers = numbers_of(on)
    by_number = {numbers[name]: action for name, action in rules.items() if name in numbers}
    return assemble(by_number, Answer(errno.EPERM), machine=on, unknown_from=UNKNOWN_FROM)


def install_filter(rules: dict[str, Action]) -> None:
    """Put every thread of this process, and all that come of it, under the filter; no_new_privs is set.

    Raises:
        OSError: the kernel has no filters, or this machine is not in the tables.
    """
    if not numbers_of(machine()):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    install_program(compile_filter(rules, machine()))


def install_program(program: bytes) -> None:
    """Put every thread of this process under an assembled filter.

    Raises:
        OSError: the kernel has no filters, or does not take this one.
    """
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    failed = system_call("seccomp", _SET_MODE_FILTER, _TSYNC, header)
    if failed:
        raise OSError(errno.EBUSY, f"thread {failed} could not be put under the filter")
