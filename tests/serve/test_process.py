"""One worker process: how it starts, why it ends, and what it may use."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import ConfigError, ModelFailed, WorkerLost
from cloister.serve import process
from cloister.serve.frames import Answers, Frame, HeadEncoder, Predict, RequestItem
from cloister.serve.placement import Place, Placement
from cloister.serve.process import WorkerProcess, WorkerSpec
from cloister.serve.sandbox.plan import SandboxPlan
from tests.serve.engine import engine, value
from tests.serve.test_groups import Tree
from tests.serve.test_supervisor import runs

REPORT = """
import json, os
def handle(data, context):
    if data is None:
        return None
    threads = None
    if data[0]["body"] == b"torch":
        import torch
        threads = torch.get_num_threads()
    return [json.dumps({
        "cores": sorted(os.sched_getaffinity(0)),
        "omp": os.environ.get("OMP_NUM_THREADS"),
        "home": os.environ["HOME"],
        "gpu": context.system_properties["gpu_id"],
        "dir": os.getcwd(),
        "torch": threads,
    })] * len(data)
"""


def spec(folder: Path, source: str, **more: Any) -> WorkerSpec:
    (folder / "service.py").write_text(source)
    return WorkerSpec("m", "1.0", folder, "service.py", protected=False, **more)


class Started:
    """A worker with everything that it says."""

    def __init__(self) -> None:
        self.answers: list[Frame[Answers]] = []
        self.ended = asyncio.Event()
        self.worker = WorkerProcess(on_answers=self.answers.append, on_end=lambda _: self.ended.set())

    async def ask(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of one answer."""
        head = HeadEncoder()([])
        self.worker.send(Predict([head], [RequestItem(1, "id", 0, b"", len(body))]), [body])
        while not self.answers:
            await asyncio.sleep(0.005)
        message, payload = self.answers.pop()
        return message.items[0].status, bytes(payload)


@runs
async def test_place_and_folders(tmp_path: Path) -> None:
    """A worker runs on the cores that it is given, with as many threads, in its own scratch folder."""
    core = min(os.sched_getaffinity(0))
    model, scratch = tmp_path / "model", tmp_path / "scratch"
    model.mkdir()
    scratch.mkdir()
    started = Started()
    await started.worker.start(
        spec(model, REPORT), scratch, timeout_s=30, place=Place((core,), 1), gpu_id=None
    )
    _, body = await started.ask(b"torch")
    report = json.loads(body)
    assert (report["cores"], report["omp"], report["torch"]) == ([core], "1", 1)
    assert (report["home"], report["dir"], report["gpu"]) == (str(scratch), str(model), None)
    await started.worker.stop()
    assert started.ended.is_set()
    assert started.worker.reason == "the server stopped it"
    await started.worker.stop()


@runs
async def test_workers_take_their_places() -> None:
    """Two workers of a model on two places run on one core each."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core only")
    placement = Placement(f"{cores[0]};{cores[1]}")
    async with engine(REPORT, min_workers=2, max_workers=2, placement=placement) as e:
        seen = {tuple(sorted(os.sched_getaffinity(pid))) for pid in e.pids}
        assert seen == {(cores[0],), (cores[1],)}


@runs
async def test_cores_that_are_not_there() -> None:
    """A model that asks for cores which may not be used does not start, and says which."""
    with pytest.raises(ConfigError, match="9999"):
        async with engine(REPORT, cores=("9999",)):
            pass


@runs
async def test_an_end_right_after_the_start() -> None:
    """A worker that is gone the moment it was ready is replaced, and requests are answered."""
    source = """
import os, threading, time
def handle(data, context):
    if data is None:
        mark = os.path.join(os.path.dirname(os.environ["HOME"]), "mark")
        if not os.path.exists(mark):
            open(mark, "w").close()
            threading.Timer(0.0, lambda: os._exit(5)).start()
        return None
    return ["ok"] * len(data)
"""
    with contextlib.suppress(WorkerLost):
        async with engine(source) as e:
            assert (await e.supervisor.ask([], b"", b"x")).body == b"ok"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("os._exit(3)", "exit code 3"),
        ("os.kill(os.getpid(), 11)", r"signal 11 \(SIGSEGV\)"),
        ("import time; time.sleep(600)", r"did not load within 0\.7 s"),
        ("raise SystemExit(1)", "could not be loaded"),
        ("raise MemoryError", "could not be loaded"),
    ],
)
def test_starts_that_fail(tmp_path: Path, code: str, words: str) -> None:
    """A start that fails says how, within the time limit."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    async def start() -> None:
        worker = WorkerProcess()
        limit = 0.7 if "sleep" in code else 30
        with pytest.raises((WorkerLost, ModelFailed), match=words):
            await worker.start(spec(tmp_path, f"import os\n{code}"), scratch, timeout_s=limit)
        await worker.stop()

    asyncio.run(start())


@runs
async def test_the_systems_want_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signal 9 is the system's want of memory where the system counted one, and else only signal 9."""
    kills = 4
    monkeypatch.setattr(process, "count_oom_kills", lambda: kills)
    for grows, words in ((True, "the system ended it for want of memory"), (False, "signal 9 (SIGKILL)")):
        scratch = tmp_path / str(grows)
        scratch.mkdir()
        started = Started()
        await started.worker.start(spec(tmp_path, REPORT), scratch, timeout_s=30)
        kills += grows
        os.kill(started.worker.pid, signal.SIGKILL)
        await started.ended.wait()
        assert words in started.worker.reason
        assert started.worker.out_of_memory is grows


@runs
async def test_memory_limit_of_a_worker() -> None:
    """A request that needs more memory than there is gets 507, and the worker goes on."""
    source = f"""
import resource
def handle(data, context):
    if data is None:
        limit = 1 << 30
        resource.setrlimit(resource.RLIMIT_AS, (limit, {resource.RLIM_INFINITY}))
        return None
    return [str(len(bytearray(int(item["body"])))) for item in data]
"""
    async with engine(source, batch_size=4) as e:
        pid = e.supervisor.pid
        sizes = [b"1000", b"4000000000", b"2000"]
        headers = [(b"content-type", b"text/plain")]
        answers = await asyncio.gather(*(e.supervisor.ask(headers, b"", size) for size in sizes))
        assert [answer.status for answer in answers] == [200, 507, 200]
        assert e.supervisor.pid == pid


@runs
async def test_children_end_with_their_worker() -> None:
    """What a handler has started ends with it."""
    source = """
import os, time
def handle(data, context):
    if data is None:
        return None
    child = os.fork()
    if child == 0:
        time.sleep(600)
    return [{"child": child}]
"""
    async with engine(source) as e:
        try:
            answer = await e.supervisor.ask([], b"", b"x")
        except WorkerLost:
            return
        if answer.status != 200:
            pytest.skip("handlers cannot fork here")
        child = value(answer)["child"]
        os.kill(e.supervisor.pid, signal.SIGKILL)
        await e.until(lambda: not Path(f"/proc/{child}").exists() or _is_zombie(child))


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@runs
async def test_a_control_group_of_its_own(tmp_path: Path) -> None:
    """A worker is put into its group before it loads the model, and the group ends with it."""
    tree = Tree(tmp_path / "machine", "/")
    groups = tree.open()
    assert groups is not None
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    plan = SandboxPlan(memory_bytes=1 << 30, scratch_bytes=1 << 20)
    grouped = dataclasses.replace(spec(tmp_path, REPORT), sandbox=plan, groups=groups)
    started = Started()
    await started.worker.start(grouped, scratch, timeout_s=30)
    (folder,) = tree.group.glob("cloister-worker-*")
    assert (folder / "cgroup.procs").read_text() == str(started.worker.pid)
    assert (folder / "memory.max").read_text() == str((1 << 30) + (1 << 20))
    (folder / "memory.events").write_text("oom_kill 1\n")
    os.kill(started.worker.pid, signal.SIGKILL)
    await started.ended.wait()
    assert started.worker.reason == "the system ended it for want of memory"
    assert (folder / "cgroup.kill").read_text() == "1"


@runs
async def test_a_start_given_up_at_any_moment(tmp_path: Path) -> None:
    """However early its start is cancelled, no process, descriptor or connection of a worker is left."""
    for steps in range(6):
        scratch = tmp_path / f"scratch-{steps}"
        scratch.mkdir()
        worker = WorkerProcess()
        task = asyncio.ensure_future(worker.start(spec(tmp_path, REPORT), scratch, timeout_s=30))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not worker.pid or not Path(f"/proc/{worker.pid}").exists()


@runs
async def test_native_code_without_memory_is_replaced() -> None:
    """Where a library ends the process for want of memory, another worker answers, under the same limit."""
    source = f"""
import ctypes, os, resource
def handle(data, context):
    if data is None:
        resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, {resource.RLIM_INFINITY}))
        return None
    if bytes(data[0]["body"]) == b"fill":
        library = ctypes.CDLL(None)
        library.malloc.restype = ctypes.c_void_p
        while library.malloc(ctypes.c_size_t(1 << 24)):
            pass
        os.abort()
    return [str(os.getpid())] * len(data)
"""
    async with engine(source, idempotent=False) as e:
        first = e.supervisor.pid
        assert (await e.supervisor.ask([], b"", b"fill")).status == 507
        await e.until(lambda: e.supervisor.pid not in (0, first))
        assert int((await e.supervisor.ask([], b"", b"x")).body) != first
