"""Cloister with the models that are measured, open and protected, and the ways of asking it."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister.ohttp import bhttp
from cloister.serve.direct.pack import pack_model
from rig.callers import Found, Load, run_callers, write_bodies
from rig.forms import PRECISIONS, make_body
from rig.heavy_servers import BATCH_SIZE, CONTENT_TYPES, DELAY_MS
from rig.protected import START_S, Protected, seal_bodies, wait_answer
from rig.servers import Running, free_port, on_cores, spawn, stop

HERE = Path(__file__).resolve().parent
KEEP = 4
"""So many sealed answers of each run are opened afterwards."""
SPARE = 1.5
"""So many times as many requests are sealed as the warm-up says that will be answered."""


SERVED: dict[str, dict[str, Any]] = {
    "resnet50": {
        "input": {
            "image": {
                "resize": 256,
                "crop": 224,
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
            }
        },
        "output": {"top": {"count": 5}},
    },
    "bert-large": {},
}
"""What the archives say of their inputs and outputs; they have no handler."""


def pack_heavy(task: str, precision: str, forms: Path, folder: Path) -> Path:
    """The archive of one model at one precision, served by an engine without a handler."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{task}-{precision}.mar"
    settings = {
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": BATCH_SIZE,
        "maxBatchDelay": DELAY_MS,
        "startupTimeout": int(START_S),
        **SERVED[task],
    }
    pack_model(
        target,
        name=target.stem,
        version="1.0",
        model=forms / ("int8.xml" if precision == "int8" else "fp32.xml"),
        kind="openvino",
        options={"precision": precision},
        settings=settings,
        archive_format="zip-store",
    )
    return target


@dataclass
class Open:
    """An ordinary server: plain HTTP, plain archives."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path


def open_command(
    archives: Sequence[Path], work: Path, *, cores: str = "", settings: Mapping[str, object] | None = None
) -> tuple[list[str], int]:
    """How to start a server with these models, and its port.

    Args:
        cores: a list as ``taskset`` takes it; empty means all.
        settings: further settings of the server.
    """
    store, port = work / "open-store", free_port()
    store.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        if not (store / archive.name).exists():
            (store / archive.name).hardlink_to(archive)
    flags: dict[str, object] = {
        "serve.mode": "open",
        "serve.model_store": str(store),
        "serve.http_port": port,
        "serve.startup_timeout_s": START_S,
        **(settings or {}),
    }
    return on_cores([sys.executable, str(HERE / "cloister_app.py"), json.dumps(flags)], cores), port


@contextlib.contextmanager
def start_open(archives: Sequence[Path], work: Path, *, cores: str = "") -> Iterator[Open]:
    """A server with these models, from its start to its end."""
    command, port = open_command(archives, work, cores=cores)
    log = work / "open.log"
    process = spawn(command, log)
    try:
        wait_answer(f"http://127.0.0.1:{port}/ping", process, log)
        yield Open(process, port, log)
    finally:
        stop(process)


class Asking:
    """Callers of one task, who know how many requests to seal ahead."""

    def __init__(self, work: Path, task: str, *, callers: int, seconds: float) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self._task, self._callers, self._seconds = task, callers, seconds
        self._body, self._type = make_body(task), CONTENT_TYPES[task]
        self._plain, self._sealed = work / "bodies", work / "sealed"
        write_bodies(self._plain, [self._body])
        self._expected: dict[str, object] = {}
        self._rates: dict[str, float] = {}

    def warm(self, server: Open, model: str, seconds: float) -> None:
        """Note the answer and about how many come in a second."""
        found = self.ask(self._open(server, model), seconds=seconds, keep=1)
        self._expected[model] = json.loads(base64.b64decode(found.answers[0]))
        self._rates[model] = found.per_s

    def more_callers(self, callers: int) -> None:
        """From now on so many."""
        self._callers = callers

    def shorter(self, seconds: float, measure: Callable[[str], object], name: str) -> None:
        """Run ``measure`` once for less time, as a warm-up."""
        whole, self._seconds = self._seconds, min(seconds, self._seconds)
        try:
            measure(name)
        finally:
            self._seconds = whole

    def open(self, server: Open, model: str) -> Found:
        """Plain HTTP."""
        return self.ask(self._open(server, model))

    def tls(self, server: Protected, model: str) -> Found:
        """Attested TLS; the session is kept, so that its handshake is made once."""
        return self.ask(server.over_tls(model, self._body, self._type), tls=True)

    def ohttp(self, server: Protected, model: str) -> Found:
        """Requests that were sealed ahead, each sent once; some answers are opened and compared.

        Raises:
            SystemExit: an answer cannot be opened, or is another one than the open server's.
        """
        target = server.over_ohttp(model, self._body)
        count = int(self._rates[model] * self._seconds * SPARE) + 2 * self._callers
        openers = seal_bodies(
            server, self._sealed, count, name=model, body=self._body, content_type=self._type, keep=KEEP
        )
        found = self.ask(target, bodies=self._sealed, once=True, keep=KEEP)
        for opener, answer in zip(openers, found.answers, strict=True):
            response = bhttp.parse_response(opener.open(base64.b64decode(answer)))
            if response.status != 200 or not _same(json.loads(response.content), self._expected[model]):
                raise SystemExit(f"{model}: a sealed answer is not the open one: status {response.status}")
        return found

    def peer(self, server: Running) -> Found:
        """Another server, with the request that it takes."""
        body = self._plain.with_name("peer-bodies")
        write_bodies(body, [server.body.encode() if isinstance(server.body, str) else server.body])
        return self.ask(server, bodies=body)

    def ask(
        self,
        target: Running,
        *,
        seconds: float = 0.0,
        bodies: Path | None = None,
        once: bool = False,
        tls: bool = False,
        keep: int = 0,
    ) -> Found:
        """One run of the callers.

        Raises:
            SystemExit: a request was not answered with 200.
        """
        host, port = target.address
        load = Load(
            host=host,
            port=port,
            path=target.path,
            headers=dict(target.headers),
            bodies=str(bodies or self._plain),
            callers=self._callers,
            seconds=seconds or self._seconds,
            tls=tls,
            once=once,
            keep=keep,
        )
        found = run_callers(load)
        if found.failed:
            raise SystemExit(f"{target.name}: {found.failed} requests failed: {found.statuses}")
        return found

    def _open(self, server: Open, model: str) -> Running:
        url = f"http://127.0.0.1:{server.port}/predictions/{model}"
        return Running("open", url, server.process, self._body, server.log, {"content-type": self._type})


def _same(answer: object, expected: object) -> bool:
    """Equal but for rounding: batches of other sizes add in another order."""
    if isinstance(answer, dict) and isinstance(expected, dict):
        return answer.keys() == expected.keys() and all(_same(answer[key], expected[key]) for key in answer)
    if isinstance(answer, list) and isinstance(expected, list):
        return len(answer) == len(expected) and all(map(_same, answer, expected))
    if isinstance(answer, float | int) and isinstance(expected, float | int):
        return abs(answer - expected) <= 1e-3 + 1e-2 * abs(expected)
    return answer == expected


__all__ = ["PRECISIONS", "Asking", "Open", "pack_heavy", "start_open"]
