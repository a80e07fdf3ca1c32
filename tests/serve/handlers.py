"""A handler loaded in the test's own process, and requests for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cloister.errors import MalformedInput
from cloister.serve.batching import run_in_halves
from cloister.serve.frames import MetricDefinition
from cloister.serve.handler import Handler, Outcome
from cloister.serve.incoming import Head, Incoming
from cloister.serve.loading import load_handler
from cloister.serve.manifest import MANIFEST_NAME

MODULE = "service_under_test"


@contextmanager
def import_state() -> Iterator[None]:
    """Loading a handler changes the import system, as it may in a worker; here it is put back."""
    path, finders, modules = list(sys.path), list(sys.meta_path), set(sys.modules)
    try:
        yield
    finally:
        sys.path[:], sys.meta_path[:] = path, finders
        for name in set(sys.modules) - modules:
            if name.partition(".")[0] in ("ts", "torchvision") or name.startswith("h_"):
                del sys.modules[name]
        sys.modules.pop(MODULE, None)


def load(
    folder: Path,
    source: str,
    handler: str = f"{MODULE}.py",
    *,
    settings: str = "",
    protected: bool = False,
    envelope: str = "",
    metrics: Sequence[MetricDefinition] = (),
    **model: Any,
) -> Handler:
    """The handler of this source; keywords go into the manifest."""
    sys.modules.pop(MODULE, None)
    (folder / f"{MODULE}.py").write_text(source)
    if settings:
        (folder / "c.yaml").write_text(settings)
        model["configFile"] = "c.yaml"
    (folder / "MAR-INF").mkdir(exist_ok=True)
    document = {"model": {"modelName": "m", "modelVersion": "1.0", "handler": handler, **model}}
    (folder / MANIFEST_NAME).write_text(json.dumps(document))
    return load_handler(
        folder, handler, name="m", envelope=envelope, metrics=metrics, show_text=not protected
    )


def request(
    body: bytes, content_type: str = "text/plain", query: bytes = b"", number: int = 0, **headers: str
) -> Incoming:
    """One request; keywords are headers."""
    named = {"content-type": content_type, **headers}
    head = Head(named, content_type, content_type.startswith("application/json"))
    item = Incoming(number, f"id-{number}", head, query, body)
    item.prepare()
    return item


def answer(handler: Handler, *requests: Incoming) -> list[Outcome]:
    """The outcomes of one batch, as a worker gives them."""
    return run_in_halves(requests, handler.run)


def ask(handler: Handler, body: bytes = b"x", content_type: str = "text/plain", **headers: str) -> Outcome:
    """One request's outcome."""
    try:
        return answer(handler, request(body, content_type, **headers))[0]
    except MalformedInput as error:
        raise AssertionError(error.message) from error


def value(outcome: Outcome) -> Any:
    """The JSON of an answer that must be one."""
    assert outcome.status == 200, outcome
    return json.loads(outcome.body)
