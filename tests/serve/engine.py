"""A supervisor with real workers, without any HTTP: what the tests of the engine run against."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cloister.serve.frames import Headers
from cloister.serve.jobs import Answer, Job
from cloister.serve.model_config import ModelConfig
from cloister.serve.process import WorkerSpec
from cloister.serve.supervisor import Supervisor
from cloister.serve.tmpfs import PrivateFolder

JSON: Headers = [(b"content-type", b"application/json")]

HANDLER = """
import os, time

calls = 0

def handle(data, context):
    global calls
    if data is None:
        return None
    calls += 1
    answers = []
    for index, item in enumerate(data):
        body = item["body"]
        command = body["do"]
        if command == "exit":
            os._exit(7)
        if command == "once":  # kills the first worker that gets it
            if not os.path.exists(body["marker"]):
                open(body["marker"], "w").close()
                os._exit(9)
        if command == "hang":
            time.sleep(600)
        if command == "sleep":
            time.sleep(body["s"])
        if command == "memory":
            raise MemoryError
        if command == "bad":
            raise ValueError("no such " + body["what"])
        if command == "bug":
            raise RuntimeError("secret of the model")
        if command == "count":
            with open(body["file"], "a") as file:
                file.write("x")
        if command == "parts":
            for number in range(body["n"]):
                context.send_part(index, f"{number},")
                if number == body.get("die"):
                    os._exit(9)
            answers.append("end")
            continue
        answers.append({"batch": len(data), "pid": os.getpid(), "calls": calls, "echo": body.get("echo")})
    return answers
"""


class Engine:
    """One model under a supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor

    async def ask(self, command: str, **more: Any) -> Answer:
        """One request's answer; keywords of ``Supervisor.ask`` go there, the others into the body."""
        options = {key: more.pop(key) for key in ("deadline", "priority", "alone") if key in more}
        body = json.dumps({"do": command, **more}).encode()
        return await self.supervisor.ask(JSON, b"", body, **options)

    async def many(self, count: int, command: str, **more: Any) -> list[Answer]:
        """The answers to equal requests made at once."""
        return list(await asyncio.gather(*(self.ask(command, **more) for _ in range(count))))

    def submit(self, command: str, **more: Any) -> tuple[Job, list[Answer]]:
        """A job on its way, and the list that its answers will be put into."""
        answers: list[Answer] = []
        options = {key: more.pop(key) for key in ("deadline", "priority", "alone") if key in more}
        body = json.dumps({"do": command, **more}).encode()
        job = Job("id", JSON, b"", body, lambda _, answer: answers.append(answer), **options)
        self.supervisor.submit(job)
        return job, answers

    @property
    def pids(self) -> list[int]:
        """Process numbers of the workers that are given requests."""
        return [view.pid for view in self.supervisor.workers() if view.status == "READY"]

    async def until(self, condition: Any, timeout_s: float = 20.0) -> None:
        """Wait until something is so."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.01)


def value(answer: Answer) -> Any:
    """The JSON of an answer that must be one."""
    assert answer.status == 200, (answer.status, answer.fault)
    return json.loads(bytes(answer.body))


@asynccontextmanager
async def engine(source: str = HANDLER, **options: Any) -> AsyncIterator[Engine]:
    """A model with this handler; options are those of ``ModelConfig``, or of ``Supervisor``."""
    own = {
        k: options.pop(k)
        for k in ("warm_spare", "placement", "autoscaler", "request_timeout_s")
        if k in options
    }
    own.setdefault("request_timeout_s", 30.0)
    config = ModelConfig(**options)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as parent, PrivateFolder(Path(parent)) as folders:
        folder = folders.make("code")
        (folder / "service.py").write_text(source)
        spec = WorkerSpec(
            name="m",
            version="1.0",
            model_dir=folder,
            handler="service.py",
            protected=False,
            batch_size=config.batch_size,
            idempotent=config.idempotent,
        )
        supervisor = Supervisor(spec, folders, config, **own)
        try:
            await supervisor.start()
            yield Engine(supervisor)
        finally:
            await supervisor.stop(drain_s=1.0)
