"""A long mixed load with workers that are killed: nothing lost, nothing wrong, nothing that grows.

Usage: python benchmarks/soak.py [--seconds 1800] [--kill-every 30] [--growth 0.05] [--seed 1] [--json]

A real `cloister serve` in open mode has four models with two workers each. Callers of eight kinds
(`rig/mixed.py`) ask it at the same time: good JSON, chunked bodies, pictures, streamed answers, slow
senders, malformed requests, bodies over the limit, and requests whose callers go away. Every so often
a worker is killed. It fails (exit code 1) if

- a good request is not answered, or not rightly; a bad one gets anything but its 400 or 413,
- more streamed answers broke off than workers of their model were killed could explain,
- memory of the frontend, or of the workers of a model, grew by more than `--growth` after the warm-up,
- when all is quiet again there are more descriptors, processes or files in the tmpfs than after the warm-up,
- anything is left in the tmpfs after the server's end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rig.mixed import CALLERS, GOOD, MixedLoad
from rig.servers import Running, free_port, stop, wait_ready

RIG = Path(__file__).resolve().parent / "rig"

MODELS = {"numbers": 16, "images": 4, "parts": 1, "digest": 4}
"""Each model's batch size."""
WORKERS = 2
SAMPLE_S = 2.0
SETTLED_S = 8.0
"""A worker younger than this is not compared: it is still loading, or has met few requests."""
WINDOW = 0.25
"""Part of the time at each end whose medians are compared."""


class Watch:
    """Samples of memory, and what there is when all is quiet."""

    def __init__(self, running: Running, tmpfs: Path) -> None:
        self._running = running
        self._tmpfs = tmpfs
        self._seen: dict[int, float] = {}
        self.memory: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)

    def workers(self) -> dict[int, str]:
        """Process number and model of every worker. A worker's folder is named after its model."""
        found = {}
        for pid in self._running.children():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"cloister.serve.worker" in command:
                    found[pid] = _model_of(pid)
        return found

    def sample(self, now: float) -> None:
        """Note resident memory of everything that has settled."""
        self.memory["frontend"].append((now, self._running.memory_bytes() / 2**20))
        there = self.workers()
        for pid, model in there.items():
            if now - self._seen.setdefault(pid, now) > SETTLED_S:
                with contextlib.suppress(OSError):
                    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                    self.memory[f"worker {model}"].append((now, pages * 4096 / 2**20))
        self._seen = {pid: since for pid, since in self._seen.items() if pid in there}

    def quiet(self) -> dict[str, int]:
        """Descriptors, processes and files, with nobody asking."""
        pid = self._running.process.pid
        return {
            "descriptors": sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
            "threads": sum(1 for _ in Path(f"/proc/{pid}/task").iterdir()),
            "processes": len(self._running.children()),
            "files": sum(1 for _ in self._tmpfs.rglob("*")),
        }

    def growth(self, begin: float, end: float) -> dict[str, dict[str, float]]:
        """Medians of the first and the last part of the time, in MiB."""
        found = {}
        part = (end - begin) * WINDOW
        for name, samples in sorted(self.memory.items()):
            first = [mib for when, mib in samples if begin <= when <= begin + part]
            last = [mib for when, mib in samples if end - part <= when <= end]
            if first and last:
                before, after = statistics.median(first), statistics.median(last)
                found[name] = {"before_mib": before, "after_mib": after, "growth": after / before - 1}
        return found


def _model_of(pid: int) -> str:
    """The model of a worker, by the folder that it works in."""
    folder = str(Path(f"/proc/{pid}/cwd").readlink())
    return next((name for name in MODELS if f"/{name}-" in folder + "/"), "starting")


@contextlib.contextmanager
def serve(work: Path, tmpfs: Path) -> Iterator[Running]:
    """The server, from its start to its end."""
    from cloister.serve.pack import pack_archive

    store = work / "store"
    store.mkdir()
    for name, size in MODELS.items():
        config = work / f"{name}.yaml"
        config.write_text(json.dumps({"minWorkers": WORKERS, "maxWorkers": WORKERS, "batchSize": size}))
        handler = RIG / "soak_handler.py"
        pack_archive(store / f"{name}.mar", name=name, version="1.0", handler=handler, config_file=config)
    port, log = free_port(), work / "server.log"
    settings = work / "serve.toml"
    settings.write_text(
        f'[serve]\nmode = "open"\nmodel_store = "{store}"\nhttp_port = {port}\ntmpfs = "{tmpfs}"\n'
    )
    command = [str(Path(sys.executable).with_name("cloister")), "serve", "-c", str(settings)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=work,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}/predictions/numbers"
    running = Running("cloister", url, process, "[1, 2, 3, 4]", log)
    try:
        wait_ready(running)
        yield running
    finally:
        stop(process)


async def soak(running: Running, watch: Watch, options: argparse.Namespace) -> dict[str, Any]:
    """Ask and kill for as long as was asked for."""
    chance = random.Random(options.seed)
    load = MixedLoad(*running.address, seed=options.seed)
    killed: Counter[str] = Counter()
    warm_s = options.warm_up or max(20.0, options.seconds * 0.1)
    await _drive(load, watch, killed, chance, warm_s, options.kill_every)
    before = await _settle(load, watch)
    begin = time.monotonic()
    await _drive(load, watch, killed, chance, options.seconds - warm_s, options.kill_every)
    end = time.monotonic()
    after = await _settle(load, watch)
    return {
        "seconds": options.seconds,
        "right": dict(load.right),
        "wrong": dict(load.wrong),
        "streams_cut": load.cut["streamed"],
        "longest_s": {kind: round(seconds, 2) for kind, seconds in load.longest_s.items()},
        "killed": dict(killed),
        "memory": watch.growth(begin, end),
        "quiet_before": before,
        "quiet_after": after,
        "failures": load.lines,
        "server_alive": running.process.poll() is None,
    }


async def _drive(
    load: MixedLoad, watch: Watch, killed: Counter[str], chance: random.Random, seconds: float, every: float
) -> None:
    load.start()
    end = time.monotonic() + seconds
    next_kill = time.monotonic() + every
    while (now := time.monotonic()) < end:
        watch.sample(now)
        # None at the very end, so that its successor has been loaded when all is counted.
        if now >= next_kill and now < end - SETTLED_S:
            next_kill = now + every
            pid, model = chance.choice(sorted(watch.workers().items()))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed[model] += 1
        await asyncio.sleep(SAMPLE_S)
    await load.pause()


async def _settle(load: MixedLoad, watch: Watch) -> dict[str, int]:
    """What there is when all is quiet; waits a little for what is still being taken away."""
    quiet = watch.quiet()
    for _ in range(10):
        await asyncio.sleep(1)
        now = watch.quiet()
        if now == quiet:
            break
        quiet = now
    return quiet


def violations(found: dict[str, Any], growth: float) -> list[str]:
    """What is not as it has to be, in words."""
    said = [f"{count} of {kind} wrong or not answered" for kind, count in found["wrong"].items()]
    said += [f"no answer to {kind}" for kind in CALLERS if not found["right"].get(kind)]
    possible = found["killed"].get("parts", 0) * CALLERS["streamed"]
    if found["streams_cut"] > possible:
        said.append(f"{found['streams_cut']} streamed answers broke off, kills explain {possible}")
    for name, memory in found["memory"].items():
        if memory["growth"] > growth:
            said.append(f"memory of {name} grew by {memory['growth']:.1%}")
    for name, count in found["quiet_before"].items():
        if found["quiet_after"][name] > count:
            said.append(f"{name}: {count} after the warm-up, {found['quiet_after'][name]} at the end")
    if not found["server_alive"]:
        said.append("the server has ended")
    if found["left_behind"]:
        said.append(f"left in the tmpfs: {found['left_behind']}")
    return said


def print_report(found: dict[str, Any]) -> None:
    """For people."""
    good = sum(found["right"].get(kind, 0) for kind in GOOD)
    kills = sum(found["killed"].values())
    print(f"{found['seconds']:g} s, {good} good requests answered rightly, {kills} workers killed")
    for kind in CALLERS:
        right, wrong = found["right"].get(kind, 0), found["wrong"].get(kind, 0)
        print(f"  {kind:<10} right {right:>8}  wrong {wrong:>4}  longest {found['longest_s'].get(kind, 0)} s")
    print(f"  streamed answers that broke off with their worker: {found['streams_cut']}")
    for name, memory in found["memory"].items():
        print(
            f"  {name:<16} {memory['before_mib']:7.1f} MiB, {memory['after_mib']:7.1f} at the end"
            f" ({memory['growth']:+.1%})"
        )
    print(f"  quiet: {found['quiet_before']}, at the end {found['quiet_after']}")
    for line in found["failures"]:
        print(f"  failed: {line}")


def main() -> int:
    """Soak, and say what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("SOAK_SECONDS", "1800")))
    parser.add_argument("--warm-up", type=float, default=0.0, help="seconds of it; 0: a tenth, at least 20")
    parser.add_argument("--kill-every", type=float, default=30.0, help="seconds")
    parser.add_argument("--growth", type=float, default=0.05, help="of memory, after the warm-up")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))  # so that the server ends too
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as folder,
        tempfile.TemporaryDirectory(prefix="soak-", dir=memory if memory.is_dir() else None) as held,
    ):
        tmpfs = Path(held)
        with serve(Path(folder), tmpfs) as running:
            found = asyncio.run(soak(running, Watch(running, tmpfs), options))
            running.process.terminate()
            running.process.wait(60)
        found["left_behind"] = sorted(path.name for path in tmpfs.rglob("*"))
    found["violations"] = violations(found, options.growth)
    if options.json:
        json.dump(found, sys.stdout, indent=1)
        print()
    else:
        print_report(found)
        for line in found["violations"]:
            print(f"VIOLATION: {line}")
    return 1 if found["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
