"""A handler that tries what a hostile one would: one attempt for each request, chosen by its body.

It answers ``{"refused": errno name}`` or ``{"done": what}``. It imports nothing of Cloister.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import threading
import time

LIBC = ctypes.CDLL(None, use_errno=True)
TABLE = """
io_uring_setup 425; bpf 321; keyctl 250; add_key 248; perf_event_open 298; mount 165; unshare 272;
setns 308; pivot_root 155; chroot 161; ptrace 101; process_vm_readv 310; process_vm_writev 311;
pidfd_open 434; pidfd_getfd 438; pidfd_send_signal 424; kcmp 312; memfd_create 319; execveat 322;
userfaultfd 323; init_module 175; kexec_load 246; open_by_handle_at 304; inotify_init1 294;
fanotify_init 300; setpriority 141; capset 126; shmget 29; msgget 68; mq_open 240; seccomp 317;
landlock_create_ruleset 444; setsid 112; setpgid 109; setuid 105; personality 135; modify_ldt 154;
iopl 172; reboot 169; swapon 167; sethostname 170; clone3 435; vfork 58; mknod 133; tkill 200;
rt_sigqueueinfo 129; process_madvise 440; migrate_pages 256; sched_setscheduler 144;
ioprio_set 251; open_tree 428; move_mount 429; fsopen 430; memfd_secret 447; quotactl 179;
settimeofday 164; clock_settime 227; vmsplice 278; accept4 288; bind 49; connect 42; setsockopt 54;
truncate 76; name_to_handle_at 303; splice 275; tee 276; syslog 103; acct 163;
request_key 249; process_mrelease 448; mount_setattr 442; io_setup 206; io_submit 209;
finit_module 313; kexec_file_load 320; ioperm 173; fsmount 432; listen 50; sendmmsg 307;
recvmmsg 299; delete_module 176; vhangup 153
"""
"""Numbers on x86-64."""
NUMBERS = {name: int(number) for name, number in (pair.split() for pair in TABLE.split(";"))}


def checked(result):
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def call(name, *arguments):
    """A system call by name, with no library in between."""
    number = NUMBERS[name]
    return checked(LIBC.syscall(ctypes.c_long(number), *[
        ctypes.c_long(a) if isinstance(a, int) else a for a in arguments
    ]))  # fmt: skip


@contextlib.contextmanager
def pipe():
    reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


def prctl(option, value):
    return checked(LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0))


class Attempts:
    """Every public method is one attempt."""

    # Network.

    def socket(self, family, kind):
        with socket.socket(getattr(socket, family), getattr(socket, kind)):
            return "a socket"

    def connect(self, host, port):
        with socket.create_connection((host, port), timeout=2):
            return "connected"

    def resolve(self, name):
        try:
            return socket.getaddrinfo(name, 80)
        except socket.gaierror as error:
            raise OSError(errno.EPERM, str(error)) from error

    def datagram_pair(self):
        first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with first, second:
            return first.sendto(b"x", "/dev/log")

    def foreign_address(self, path):
        first, second = socket.socketpair()
        with first, second:
            return first.sendto(b"x", path)

    # Files.

    def read(self, path):
        with open(path, "rb") as file:
            return len(file.read(100))

    def list(self, path):
        return os.listdir(path)

    def write(self, path):
        with open(path, "ab") as file:
            return file.write(b"x")

    def exists(self, path):
        if not os.path.lexists(path):
            raise FileNotFoundError(errno.ENOENT, "not there")
        return "it is there"

    def own_work(self):
        """What must work: its own folder, temporary files, copies."""
        import shutil
        import tempfile

        with tempfile.NamedTemporaryFile("w+") as file:
            file.write("x")
        with open("a", "w") as file:
            file.write("x")
        shutil.copy2("a", "b")
        os.rename("b", "c")
        os.remove("c")
        names = []
        thread = threading.Thread(target=lambda: names.append("thread"))
        thread.start()
        thread.join()
        return [*names, sorted(os.listdir("."))]

    def escape_by_link(self, path):
        os.symlink(path, "link")
        try:
            return self.read("link")
        finally:
            os.unlink("link")

    def hard_link(self, path):
        return os.link(path, "hard")

    def rename_out(self, path):
        with open("mine", "w"):
            pass
        return os.rename("mine", path)

    def change_mode(self, path):
        before = os.stat(path).st_mode
        os.chmod(path, 0o777 if before & 0o777 != 0o777 else 0o700)
        after = os.stat(path).st_mode
        if after == before:
            raise PermissionError(errno.EPERM, "nothing changed")
        return "changed"

    def change_owner(self, path):
        return os.chown(path, 65534, 65534)

    # Other processes.

    def kill(self, pid):
        return os.kill(pid, signal.SIGKILL)

    def kill_group(self, pid):
        return os.killpg(os.getpgid(pid), signal.SIGKILL)

    def kill_by_sigio(self, pid):
        """An owner of a pipe that reports with SIGKILL."""
        with pipe() as (reader, writer):
            fcntl.fcntl(reader, 10, signal.SIGKILL)
            fcntl.fcntl(reader, fcntl.F_SETOWN, pid)
            fcntl.fcntl(reader, fcntl.F_SETFL, fcntl.fcntl(reader, fcntl.F_GETFL) | os.O_ASYNC)
            os.write(writer, b"x")
        return "sent"

    def kill_by_ioctl(self, pid):
        with pipe() as (reader, _):
            fcntl.ioctl(reader, 0x8901, struct.pack("i", pid))
        return "owner set"

    def limit(self, pid):
        return resource.prlimit(pid, resource.RLIMIT_NOFILE, (10, 10))

    def affinity(self, pid):
        return os.sched_setaffinity(pid, {0})

    def priority(self, pid):
        return os.setpriority(os.PRIO_PROCESS, pid, 19)

    def trace(self, pid):
        return call("ptrace", 16, pid, 0, 0)

    def read_memory(self, pid):
        buffer = ctypes.create_string_buffer(8)
        local = struct.pack("=QQ", ctypes.addressof(buffer), 8)
        return call("process_vm_readv", pid, local, 1, struct.pack("=QQ", 4096, 8), 1, 0)

    def take_descriptor(self, pid):
        return call("pidfd_getfd", call("pidfd_open", pid, 0), 1, 0)

    # New processes.

    def fork(self):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        return os.waitpid(pid, 0)[0] and "forked"

    def fork_bomb(self):
        while True:
            os.fork()

    def run(self, path):
        return os.execv(path, [path])

    def spawn(self, path):
        return os.posix_spawn(path, [path], {})

    def run_from_memory(self):
        descriptor = call("memfd_create", b"x\0", 0)
        with open("/usr/bin/true", "rb") as file:
            os.write(descriptor, file.read())
        return call("execveat", descriptor, b"\0", 0, 0, 0x1000)

    def leave_group(self):
        return os.setsid()

    def outlive(self):
        """No longer be killed when the server ends."""
        return prctl(1, 0)

    def allow_dumps(self):
        return prctl(4, 1)

    def threads(self, count):
        running = []
        stop = threading.Event()
        try:
            for _ in range(count):
                thread = threading.Thread(target=stop.wait)
                thread.start()
                running.append(thread)
        finally:
            stop.set()
        return len(running)

    # The kernel.

    def system_call(self, name, *arguments):
        return call(name, *arguments)

    def foreign_table(self):
        """The 32-bit table's getpid, which this machine's filter must not take for another call."""
        number = 20 | 0x40000000
        return checked(LIBC.syscall(ctypes.c_long(number)))

    # Using up.

    def fill_memory(self, limit):
        held = []
        while sum(map(len, held)) < limit:
            held.append(bytearray(b"\1" * (1 << 20)))
        return "filled"

    def fill_shared_memory(self, limit):
        import mmap

        held = []
        while 64 * len(held) << 20 < limit:
            held.append(mmap.mmap(-1, 64 << 20))
            for offset in range(0, 64 << 20, 4096):
                held[-1][offset] = 1
        return "filled"

    def fill_folder(self, limit):
        try:
            for number in range(limit >> 20):
                with open(f"fill-{number}", "wb") as file:
                    file.write(b"\1" * (1 << 20))
        finally:
            for name in os.listdir("."):
                if name.startswith("fill-"):
                    os.unlink(name)
        return "filled"

    def open_files(self, count):
        held = []
        try:
            for _ in range(count):
                held.append(os.open("/dev/null", os.O_RDONLY))
        finally:
            for descriptor in held:
                os.close(descriptor)
        return len(held)

    def sleep(self, seconds):
        return time.sleep(seconds)

    # The frontend.

    def descriptors(self):
        found = {}
        for number in range(3, 256):
            try:
                found[number] = os.readlink(f"/proc/self/fd/{number}")
            except OSError:
                continue
        return sorted(found.values())

    def garbage(self, raw):
        """Write what is no frame to the socket that leads to the frontend."""
        data = bytes.fromhex(raw)
        for number in range(3, 256):
            try:
                os.write(number, data)
            except OSError:
                continue
        time.sleep(30)

    def forge(self, kind):
        """Speak the worker's own language to the frontend, with lies in it."""
        from cloister.serve import frames as f
        from cloister.serve.sandbox.plan import SandboxState

        head = f.HeadEncoder()([(b"content-type", b"text/plain")])
        lies = {
            "others": (
                f.Answers([head], [f.AnswerItem(n, 200, 0, 1) for n in range(1000, 2000)]),
                [b"x"] * 1000,
            ),
            "nothing": (f.Answers([head], []), []),
            "no head": (f.Answers([], [f.AnswerItem(1, 200, 7, 0)]), []),
            "ready again": (f.Loaded(), []),
            "confined again": (f.Confined(SandboxState(network="all")), []),
        }
        raw = (
            b"\x00\x00\x00\x02\x00\x00\x7f\xff\xff\xff\xff\xff"
            if kind == "length"
            else b"".join(f.encode_frame(*lies[kind]))
        )
        for number in range(3, 256):
            try:
                for _ in range(50 if kind == "nothing" else 1):
                    os.write(number, raw)
            except OSError:
                continue
        time.sleep(30)

    def send_descriptors(self):
        """Give the frontend descriptors that it did not ask for."""
        sent = 0
        for number in range(3, 256):
            try:
                frontend = socket.socket(fileno=os.dup(number))
            except OSError:
                continue
            with frontend, open("/dev/null") as null:
                socket.send_fds(frontend, [b"\xff"], [null.fileno()] * 50)
                sent += 50
        time.sleep(30)
        return sent

    def out_of_band(self):
        for number in range(3, 256):
            try:
                frontend = socket.socket(fileno=os.dup(number))
            except OSError:
                continue
            with frontend:
                frontend.send(b"!", socket.MSG_OOB)
        return "sent"

    def hang_up(self):
        """Close the way to the frontend, and stay."""
        for number in range(3, 256):
            try:
                os.close(number)
            except OSError:
                continue
        time.sleep(600)

    def fill_with_names(self, count):
        """Files without content, which no size limits."""
        made = 0
        try:
            for made in range(count):
                os.close(os.open(f"name-{made}", os.O_CREAT | os.O_WRONLY))
        finally:
            for number in range(made):
                os.unlink(f"name-{number}")
        return made

    def sparse_file(self, size):
        with open("sparse", "wb") as file:
            try:
                file.truncate(size)
                return "made"
            finally:
                os.unlink("sparse")

    def grow(self, kind, limits):
        try:
            resource.setrlimit(kind, limits)
        except ValueError as error:  # Python's word for EPERM
            raise PermissionError(errno.EPERM, str(error)) from error
        return "grown"

    def grow_limits(self):
        return self.grow(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20))

    def grow_memory_limit(self):
        return self.grow(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def grow_pipe(self):
        with pipe() as (reader, _):
            return fcntl.fcntl(reader, 1031, 1 << 24)

    def inject_keys(self):
        """Type into the terminal that the frontend may have."""
        return fcntl.ioctl(0, 0x5412, b"x")

    def linger(self):
        """Do not end when asked to."""
        import atexit

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        atexit.register(time.sleep, 600)
        return "will stay"

    def environment(self):
        return dict(os.environ)

    def state(self):
        with open("/proc/self/status") as file:
            lines = dict(line.split(":\t", 1) for line in file if ":\t" in line)
        return {name: lines[name].strip() for name in ("CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp")}


def handle(data, context):
    """TorchServe's entry point."""
    if not data:
        return None
    body = data[0]["body"]
    os.chdir(os.environ["HOME"])
    name, *arguments = body if isinstance(body, list) else json.loads(body)
    try:
        return [{"done": getattr(Attempts(), name)(*arguments)}]
    except MemoryError:
        return [{"refused": "ENOMEM"}]
    except RuntimeError as error:
        return [{"refused": str(error)}]
    except OSError as error:
        return [{"refused": errno.errorcode.get(error.errno, str(error))}]
