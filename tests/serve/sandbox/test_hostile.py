"""A hostile model on a real server: every attempt is refused, the server and its other model stay well."""

from __future__ import annotations

import os
import platform
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes.server import Server, free_port, pack
from tests.serve.sandbox.inside import missing_here

HOSTILE = (Path(__file__).parent / "hostile_handler.py").read_text()
INNOCENT = """
import os

def handle(data, context):
    return data and [os.getpid()]
"""
TIMEOUT_S = 6.0
SCRATCH_MB, MEMORY_MB = 64, 512
MEBIBYTE = 1 << 20

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="calls by their number on x86-64")


@dataclass
class World:
    """A server with a hostile and an innocent model, and what the hostile one would like to have."""

    server: Server
    innocent_pid: int
    outside: Path
    memory: Path

    def attempt(self, name: str, *arguments: Any) -> Any:
        """What the hostile handler answers. Places in braces are filled in."""
        places = {
            "{frontend}": self.server.pid,
            "{sibling}": self.innocent_pid,
            "{port}": int(self.server.url.rpartition(":")[2]),
        }
        filled = [places.get(item, self.fill(item)) if isinstance(item, str) else item for item in arguments]
        answer = self.server.predict("hostile", json=[name, *filled])
        assert answer.status_code == 200, answer.text
        return answer.json()

    def fill(self, text: str) -> str:
        """A path with its places filled in."""
        folders = {path.name.split("-")[0]: path for path in self.memory.glob("*/*")}
        return (
            text.replace("{frontend}", str(self.server.pid))
            .replace("{sibling}", str(self.innocent_pid))
            .replace("{outside}", str(self.outside))
            .replace("{memory}", str(self.memory))
            .replace("{innocent}", str(folders.get("innocent", "")))
        )

    def check_well(self) -> None:
        """The frontend lives, and the other model answers from the same process as before."""
        answer = self.server.predict("innocent", content=b"x")
        assert (answer.status_code, answer.json()) == (200, self.innocent_pid)

    def wait_back(self, name: str = "hostile") -> None:
        """Until the hostile model has a worker again."""
        deadline = time.monotonic() + 90
        while True:
            answer = self.server.predict(name, json=["environment"])
            if answer.status_code == 200:
                return
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.1)


def flags_for(store: Path, memory: Path, **more: Any) -> dict[str, Any]:
    """Settings of a server in open mode with the sandbox on."""
    return {
        "serve.mode": "open",
        "serve.model_store": str(store),
        "serve.http_port": free_port(),
        "serve.tmpfs": str(memory),
        "serve.sandbox": "required",
        "serve.request_timeout_s": TIMEOUT_S,
        "serve.worker_scratch_mb": SCRATCH_MB,
        "serve.worker_memory_mb": MEMORY_MB,
        **more,
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One server for all attempts."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="test-") as folder:
        memory = Path(folder)
        if missing_here():
            pytest.skip(f"this machine has no isolation of {', '.join(missing_here())}")
        store = tmp_path_factory.mktemp("models")
        outside = tmp_path_factory.mktemp("outside")
        (outside / "secret").write_text("secret")
        pack(store, "hostile", HOSTILE)
        pack(store, "innocent", INNOCENT)
        with Server(flags_for(store, memory)) as server:
            server.wait_ready()
            innocent = server.predict("innocent", content=b"x").json()
            yield World(server, innocent, outside, memory)
            assert server.stop() == 0
            assert "Traceback" not in server.stderr


REFUSED = {"EPERM", "EACCES", "ENOENT", "EROFS", "ENOSYS", "ESRCH", "ENOTTY", "EISCONN", "EXDEV"}
NETWORK = [
    ("socket", "AF_INET", "SOCK_STREAM"),
    ("socket", "AF_INET", "SOCK_DGRAM"),
    ("socket", "AF_INET", "SOCK_RAW"),
    ("socket", "AF_INET6", "SOCK_STREAM"),
    ("socket", "AF_INET6", "SOCK_DGRAM"),
    ("socket", "AF_UNIX", "SOCK_STREAM"),
    ("socket", "AF_UNIX", "SOCK_DGRAM"),
    ("socket", "AF_NETLINK", "SOCK_RAW"),
    ("socket", "AF_PACKET", "SOCK_RAW"),
    ("socket", "AF_VSOCK", "SOCK_STREAM"),
    ("socket", "AF_ALG", "SOCK_SEQPACKET"),
    ("connect", "127.0.0.1", "{port}"),
    ("connect", "127.0.0.1", 8600),
    ("connect", "1.1.1.1", 53),
    ("resolve", "localhost"),
    ("resolve", "example.org"),
    ("datagram_pair",),
    ("foreign_address", "\0abstract"),
    ("system_call", "bind", 3, 0, 0),
    ("system_call", "connect", 3, 0, 0),
    ("system_call", "accept4", 3, 0, 0, 0),
    ("system_call", "setsockopt", 3, 1, 26, 0, 0),
]
FILES = [
    ("read", "/etc/passwd"),
    ("read", "/etc/shadow"),
    ("read", "/etc/hostname"),
    ("read", "{outside}/secret"),
    ("read", "/proc/self/root/etc/passwd"),
    ("read", "/proc/self/cwd/../../../../etc/passwd"),
    ("escape_by_link", "{outside}/secret"),
    ("escape_by_link", "/etc/passwd"),
    ("hard_link", "{outside}/secret"),
    ("read", "{innocent}/handler.py"),
    ("list", "{innocent}"),
    ("list", "/home"),
    ("list", "/root"),
    ("list", "/proc"),
    ("read", "/proc/1/environ"),
    ("read", "/proc/1/cmdline"),
    ("read", "/proc/{frontend}/mem"),
    ("read", "/proc/{frontend}/environ"),
    ("read", "/proc/{frontend}/maps"),
    ("read", "/proc/{frontend}/cmdline"),
    ("list", "/proc/{frontend}/fd"),
    ("list", "/proc/{frontend}/task"),
    ("read", "/proc/{sibling}/mem"),
    ("read", "/proc/{sibling}/environ"),
    ("list", "/proc/{sibling}/fd"),
    ("list", "/proc/{sibling}/cwd"),
    ("read", "/proc/kcore"),
    ("read", "/proc/kallsyms"),
    ("read", "/dev/kmsg"),
    ("read", "/dev/mem"),
    ("read", "/dev/tty"),
    ("write", "/proc/sys/kernel/core_pattern"),
    ("write", "/proc/self/oom_score_adj"),
    ("write", "{outside}/new"),
    ("write", "{outside}/secret"),
    ("write", "/usr/lib/new"),
    ("write", "/etc/new"),
    ("write", "/var/new"),
    ("rename_out", "{outside}/new"),
    ("rename_out", "/usr/lib/new"),
    ("change_mode", "/usr/lib"),
    ("change_mode", "/etc"),
    ("change_owner", "/usr/lib"),
    ("system_call", "truncate", 0, 0),
    ("system_call", "name_to_handle_at", -100, 0, 0, 0, 0),
    ("system_call", "open_by_handle_at", -100, 0, 0),
    ("system_call", "inotify_init1", 0),
    ("system_call", "fanotify_init", 0, 0),
    ("system_call", "mknod", 0, 0o20666, 0x103),
]
PROCESSES = [
    ("kill", "{frontend}"),
    ("kill", "{sibling}"),
    ("kill", 1),
    ("kill", -1),
    ("kill_group", "{frontend}"),
    ("kill_group", "{sibling}"),
    ("kill_by_sigio", "{frontend}"),
    ("kill_by_ioctl", "{frontend}"),
    ("limit", "{frontend}"),
    ("affinity", "{frontend}"),
    ("affinity", "{sibling}"),
    ("priority", "{frontend}"),
    ("trace", "{frontend}"),
    ("trace", "{sibling}"),
    ("read_memory", "{frontend}"),
    ("read_memory", "{sibling}"),
    ("take_descriptor", "{frontend}"),
    ("take_descriptor", "{sibling}"),
    ("fork",),
    ("fork_bomb",),
    ("run", "/bin/sh"),
    ("run", "/usr/bin/python3"),
    ("spawn", "/bin/sh"),
    ("run_from_memory",),
    ("leave_group",),
    ("outlive",),
    ("allow_dumps",),
    ("grow_limits",),
    ("grow_memory_limit",),
    ("grow_pipe",),
    ("inject_keys",),
]
KERNEL = [
    ("system_call", name, *arguments)
    for name, *arguments in (
        ("io_uring_setup", 8, 0), ("bpf", 0, 0, 0), ("keyctl", 0, -3, 0), ("add_key", 0, 0, 0, 0, -3),
        ("perf_event_open", 0, 0, -1, -1, 0), ("mount", 0, 0, 0, 0, 0), ("unshare", 0x10000000),
        ("unshare", 0x40000000), ("setns", 3, 0), ("pivot_root", 0, 0), ("chroot", 0), ("userfaultfd", 0),
        ("init_module", 0, 0, 0), ("kexec_load", 0, 0, 0, 0), ("setpriority", 0, 0, 5), ("capset", 0, 0),
        ("shmget", 0, 4096, 0o1600), ("msgget", 0, 0o1600), ("mq_open", 0, 0, 0, 0), ("seccomp", 1, 0, 0),
        ("landlock_create_ruleset", 0, 0, 1), ("setsid",), ("setpgid", 0, 0), ("setuid", 0),
        ("personality", 0x0040000), ("modify_ldt", 0, 0, 0), ("iopl", 3), ("reboot", 0), ("swapon", 0, 0),
        ("sethostname", 0, 0), ("clone3", 0, 0), ("vfork",), ("tkill", 1, 0), ("rt_sigqueueinfo", 1, 0, 0),
        ("pidfd_open", 1, 0), ("pidfd_getfd", 0, 0, 0), ("pidfd_send_signal", 0, 0, 0, 0),
        ("process_vm_writev", 1, 0, 0, 0, 0, 0), ("process_madvise", 0, 0, 0, 0, 0), ("kcmp", 1, 1, 0, 0, 0),
        ("migrate_pages", 1, 0, 0, 0), ("sched_setscheduler", 0, 0, 0), ("ioprio_set", 1, 0, 0),
        ("open_tree", -100, 0, 0), ("move_mount", 0, 0, 0, 0, 0), ("fsopen", 0, 0), ("memfd_secret", 0),
        ("splice", 0, 0, 0, 0, 1, 0), ("tee", 0, 0, 1, 0), ("syslog", 3, 0, 0), ("acct", 0),
        ("request_key", 0, 0, 0, 0), ("process_mrelease", 0, 0), ("mount_setattr", -100, 0, 0, 0, 0),
        ("io_setup", 1, 0), ("io_submit", 0, 0, 0), ("finit_module", 0, 0, 0), ("ioperm", 0, 1, 1),
        ("kexec_file_load", 0, 0, 0, 0, 0), ("fsmount", 0, 0, 0), ("listen", 3, 1), ("vhangup",),
        ("sendmmsg", 3, 0, 0, 0), ("recvmmsg", 3, 0, 0, 0, 0), ("delete_module", 0, 0),
        ("quotactl", 0, 0, 0, 0), ("settimeofday", 0, 0), ("clock_settime", 0, 0), ("vmsplice", 0, 0, 0, 0),
    )
]  # fmt: skip


ATTEMPTS = [*NETWORK, *FILES, *PROCESSES, *KERNEL]


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda item: "-".join(map(str, item)))
def test_refused(world: World, attempt: tuple[Any, ...]) -> None:
    """The attempt fails with an error, in a worker that goes on; nothing else notices."""
    answer = world.attempt(*attempt)
    assert answer.get("refused") in REFUSED, answer
    world.check_well()


def test_attempts_are_real(tmp_path: Path) -> None:
    """Without the sandbox the same attempts succeed: it is the sandbox that refuses them."""
    (tmp_path / "secret").write_text("secret")
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="test-") as folder:
        pack(tmp_path, "hostile", HOSTILE)
        pack(tmp_path, "innocent", INNOCENT)
        with Server(flags_for(tmp_path, Path(folder), **{"serve.sandbox": "off"})) as server:
            server.wait_ready()
            world = World(server, server.predict("innocent", content=b"x").json(), tmp_path, Path(folder))
            for attempt in (
                ("socket", "AF_INET", "SOCK_STREAM"),
                ("socket", "AF_UNIX", "SOCK_DGRAM"),
                ("connect", "127.0.0.1", "{port}"),
                ("resolve", "localhost"),
                ("read", "/etc/passwd"),
                ("escape_by_link", "{outside}/secret"),
                ("read", "{innocent}/handler.py"),
                ("read", "/proc/{frontend}/cmdline"),
                ("write", "{outside}/new"),
                ("affinity", "{sibling}"),
                ("fork",),
                ("outlive",),
                ("kill", "{sibling}"),
            ):
                assert "done" in world.attempt(*attempt), attempt
            listed = httpx.get(f"{server.url}/models").json()["models"]
            assert {model["sandbox"] for model in listed} == {"none"}


def test_own_work_is_not_refused(world: World) -> None:
    """What an honest handler does, temporary files, copies, threads, works."""
    assert world.attempt("own_work")["done"][0] == "thread"


def test_shared_memory_is_its_own(world: World) -> None:
    """What it writes to /dev/shm, where it may write at all, is seen by nobody else."""
    world.attempt("write", "/dev/shm/canary-of-hostile")
    assert not Path("/dev/shm/canary-of-hostile").exists()
    listed = world.attempt("list", "/dev/shm").get("done", [])
    assert set(listed) <= {"canary-of-hostile", world.memory.name}
    (inside,) = world.attempt("list", "{memory}").get("done", ["none"])
    others = world.attempt("list", f"{world.memory}/{inside}").get("done", [])
    assert not any("innocent" in name for name in others)


def test_state(world: World) -> None:
    """The worker has no capability and runs under a filter; its environment is the listed one."""
    found = world.attempt("state")["done"]
    assert {found["CapEff"], found["CapPrm"], found["CapBnd"]} == {"0000000000000000"}
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    assert "PYTHONPATH" not in world.attempt("environment")["done"]


def test_other_table(world: World) -> None:
    """A system call by the x32 table is unknown, whatever its number means there."""
    assert world.attempt("foreign_table") == {"refused": "ENOSYS"}


def test_descriptors(world: World) -> None:
    """Beside the standard ones a worker holds one: the socket to its own frontend."""
    found = world.attempt("descriptors")["done"]
    assert len(found) == 1
    assert found[0].startswith("socket:")


@pytest.mark.parametrize(
    ("attempt", "error"),
    [
        (("fill_memory", 4096 * MEBIBYTE), "ENOMEM"),
        (("fill_shared_memory", 4096 * MEBIBYTE), "ENOMEM"),
        (("fill_folder", 1024 * MEBIBYTE), "ENOSPC"),
        (("open_files", 100_000), "EMFILE"),
        (("fill_with_names", 1_000_000), "ENOSPC"),
        (("sparse_file", 1 << 40), "EFBIG"),
    ],
)
def test_using_up(world: World, attempt: tuple[Any, ...], error: str) -> None:
    """Memory, folder and descriptors end at their limits, with an error to the handler alone."""
    try:
        answer = world.attempt(*attempt)
    except AssertionError:  # the worker did not survive its want of memory
        world.wait_back()
    else:
        if error == "ENOSPC" and answer == {"done": "filled"}:
            pytest.skip("no mounts here: only single files are limited")
        assert answer == {"refused": error}
    world.check_well()


def test_thread_bomb(world: World) -> None:
    """Ten thousand threads hurt nobody but their own worker."""
    world.server.predict("hostile", json=["threads", 10_000])
    world.wait_back()
    world.check_well()


def test_sleep_beyond_timeout(world: World) -> None:
    """A handler that does not come back is ended after the time limit, while others are answered."""
    with ThreadPoolExecutor(1) as pool:
        hung = pool.submit(world.server.predict, "hostile", json=["sleep", 600])
        time.sleep(0.2)
        world.check_well()
        assert hung.result().status_code in (500, 503, 504, 507)
    world.wait_back()
    world.check_well()


@pytest.mark.parametrize(
    "raw",
    [
        "ff" * 64,
        "000000020000000000000000" + "91a0",
        (b"\x00\x00\x00\x09" + bytes(8) + b"\x92\xa6loaded\xc0").hex(),
        (b"\x00\x00\x00\x0b" + bytes(8) + b"\x92\xa8confined\x90").hex(),
    ],
)
def test_garbage_frames(raw: str, tmp_path: Path) -> None:
    """What is no frame, or not one for now, ends the worker and nothing else."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="test-") as folder:
        pack(tmp_path, "hostile", HOSTILE)
        pack(tmp_path, "innocent", INNOCENT)
        with Server(flags_for(tmp_path, Path(folder))) as server:
            server.wait_ready()
            world = World(server, server.predict("innocent", content=b"x").json(), tmp_path, Path(folder))
            assert server.predict("hostile", json=["garbage", raw]).status_code in (500, 503, 507)
            world.check_well()
            world.wait_back()
            assert server.stop() == 0


FORGED = ["others", "nothing", "no head", "ready again", "confined again", "length"]


def test_frames_of_a_liar(tmp_path: Path) -> None:
    """Well-formed lies end their worker; the frontend keeps no descriptor, and serves on."""
    attempts = [*(("forge", kind) for kind in FORGED), ("send_descriptors",), ("out_of_band",), ("hang_up",)]
    # One model for each: a model whose workers die again and again is started ever more slowly.
    liars = {f"liar{place}": attempt for place, attempt in enumerate(attempts)}
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="test-") as folder:
        for name in liars:
            pack(tmp_path, name, HOSTILE)
        pack(tmp_path, "innocent", INNOCENT)
        with Server(flags_for(tmp_path, Path(folder))) as server:
            server.wait_ready()
            world = World(server, server.predict("innocent", content=b"x").json(), tmp_path, Path(folder))
            before = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
            for name, attempt in liars.items():
                answer = server.predict(name, json=attempt)
                assert answer.status_code in (500, 503, 507) or attempt == ("out_of_band",), (
                    attempt,
                    answer.text,
                )
                assert answer.content != b"x"
                world.check_well()
                world.wait_back(name)
            listed = {
                model["modelName"]: model["sandbox"]
                for model in httpx.get(f"{server.url}/models").json()["models"]
            }
            assert len(set(listed.values())) == 1
            assert abs(len(list(Path(f"/proc/{server.pid}/fd").iterdir())) - before) <= 2
            assert server.stop() == 0
            assert "Traceback" not in server.stderr


def test_who_will_not_leave(tmp_path: Path) -> None:
    """A worker that ignores every wish that it end is ended, and the server in good time after it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="test-") as folder:
        pack(tmp_path, "hostile", HOSTILE)
        with Server(flags_for(tmp_path, Path(folder))) as server:
            server.wait_ready()
            assert server.predict("hostile", json=["linger"]).json() == {"done": "will stay"}
            workers = server.workers()
            started = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - started < 20
            assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_server_stops_with_hostile_work_running(tmp_path: Path) -> None:
    """The server's end is the end of every worker, also of one that is busy, and of its files."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="test-") as folder:
        pack(tmp_path, "hostile", HOSTILE)
        flags = flags_for(tmp_path, Path(folder), **{"serve.sandbox": "best-effort"})
        with Server(flags) as server, ThreadPoolExecutor(1) as pool:
            server.wait_ready()
            workers = server.workers()
            pool.submit(server.predict, "hostile", json=["sleep", 600])
            time.sleep(0.3)
            server.stop(signal.SIGKILL)
            deadline = time.monotonic() + 5
            while any(Path(f"/proc/{pid}").exists() for pid in workers):
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_models_say_how_they_are_confined(world: World) -> None:
    """``GET /models`` says what was applied to the workers of each model."""
    listed = httpx.get(f"{world.server.url}/models").json()["models"]
    assert all("syscalls=allow-list" in str(model) for model in listed), listed


def test_fork_bomb_where_processes_are_allowed(tmp_path: Path) -> None:
    """With ``sandbox_processes``, what a handler has started ends with it, and nobody else is touched."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="test-") as folder:
        source = """
import os, time
def handle(data, context):
    if not data:
        return None
    for _ in range(20):
        if os.fork() == 0:
            time.sleep(600)
    os._exit(1)
"""
        pack(tmp_path, "hostile", source)
        flags = flags_for(tmp_path, Path(folder), **{"serve.sandbox_processes": True})
        with Server(flags) as server:
            server.wait_ready()
            group = server.workers()[0]
            assert server.predict("hostile", content=b"x").status_code >= 500
            deadline = time.monotonic() + 10
            while _living(group):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert server.stop() == 0


def _living(group: int) -> list[int]:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return []
    return [group]
