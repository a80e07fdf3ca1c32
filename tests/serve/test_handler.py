"""Handlers answer as TorchServe's do, and their failures say where, never what."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.serve.handler import Outcome
from tests.serve.handlers import answer, ask, import_state, load, request


@pytest.fixture(autouse=True)
def _import_state() -> Iterator[None]:
    with import_state():
        yield


@pytest.mark.parametrize(
    ("result", "body", "content_type"),
    [
        ("b'raw'", b"raw", b"application/octet-stream"),
        ("'text'", b"text", b"text/plain; charset=utf-8"),
        ("7", b"7", b"application/json"),
        ("{'a': 1}", b'{\n  "a": 1\n}', b"application/json"),
        ("None", b"null", b"application/json"),
        ("__import__('numpy').float64(1.5)", b"1.5", b"application/json"),
        ("{None: 1}", b'{\n  "null": 1\n}', b"application/json"),
    ],
)
def test_results(tmp_path: Path, result: str, body: bytes, content_type: bytes) -> None:
    """Each kind of result has TorchServe's bytes and a content type."""
    handler = load(tmp_path, f"def handle(data, c):\n  return [{result}]")
    assert ask(handler) == Outcome(200, body, [(b"content-type", content_type)])


@pytest.mark.parametrize(
    ("source", "status", "reason"),
    [
        ("return {}", 503, "Invalid model predict output"),
        ("return [1, 2]", 503, "number of batch response mismatched"),
        ("return [object()]", 503, "Unsupported model output data type."),
        ("raise KeyError(data)", 400, "The model does not take this input"),
        ("raise RuntimeError(data)", 503, "Prediction failed"),
        ("raise MemoryError", 507, "Out of resources"),
        ("raise RuntimeError('CUDA out of memory')", 507, "Out of resources"),
    ],
)
def test_failures(tmp_path: Path, source: str, status: int, reason: str) -> None:
    """Each failure has its status and words; only an input error's text goes to its caller."""
    handler = load(tmp_path, f"def handle(data, c):\n  if data is None: return\n  {source}", protected=True)
    outcome = ask(handler, b"secret")
    assert outcome.fault is not None
    assert (outcome.status, outcome.fault.reason) == (status, reason)
    assert ("secret" in repr(outcome)) == (status == 400)


def test_fingerprint_is_of_the_place(tmp_path: Path) -> None:
    """The same defect has the same fingerprint for every request, another one has another."""
    source = """
def handle(data, context):
    if data and data[0]["body"] == "c":
        int("x")
    if data:
        raise ValueError(data)
"""
    handler = load(tmp_path, source)
    prints = [fault.fingerprint for b in (b"a", b"b", b"c") if (fault := ask(handler, b).fault)]
    assert prints[0] == prints[1] != prints[2]


def test_prediction_exception_speaks_to_the_caller(tmp_path: Path) -> None:
    """TorchServe's PredictionException sets status and message."""
    source = """
from ts.utils.util import PredictionException
def handle(data, context):
    if data:
        raise PredictionException("no", 513)
"""
    outcome = ask(load(tmp_path, source))
    assert outcome.status == 513
    assert b'"message": "no"' in outcome.body


PARTS = """
from ts.handler_utils.utils import send_intermediate_predict_response
def handle(data, context):
    if data is None: return
    for word in ("a", "b"):
        rows = [f"{word}{i}" for i in range(len(data))]
        send_intermediate_predict_response(rows, context.request_ids, "Intermediate", 200, context)
    return ["end"] * len(data)
"""


def test_answers_in_parts(tmp_path: Path) -> None:
    """What ``send_intermediate_predict_response`` sends goes out at once, for each request of the batch."""
    handler = load(tmp_path, PARTS)
    sent: list[tuple[int, bytes]] = []
    handler.part_sink = lambda item, outcome: sent.append((item.number, outcome.body))
    outcomes = answer(handler, request(b"x", number=0), request(b"y", number=1))
    assert sent == [(0, b"a0"), (1, b"a1"), (0, b"b0"), (1, b"b1")]
    assert [outcome.body for outcome in outcomes] == [b"end", b"end"]


def test_parts_need_somebody_to_take_them(tmp_path: Path) -> None:
    """Where answers are not sent in parts, the handler is told so."""
    assert ask(load(tmp_path, PARTS)).status == 503


STEPS = """
class Steps:
    def __init__(self): self.seen = {}
    def initialize(self, context): self.calls = 0
    def handle(self, data, context):
        self.calls += 1
        ids = [context.request_ids[i] for i in range(len(data))]
        for name, row in zip(ids, data):
            self.seen.setdefault(name, int(row["body"]))
            self.seen[name] -= 1
        context.stopping_criteria = [lambda r, n=name: self.seen[n] <= 0 for name in ids]
        return [f"{name}:{self.seen[name]} of {len(data)} " for name in ids]
"""


def test_answers_in_steps(tmp_path: Path) -> None:
    """With ``stopping_criteria`` a handler is called again for the requests that have not had their last."""
    handler = load(tmp_path, STEPS)
    sent: list[str] = []
    handler.part_sink = lambda item, outcome: sent.append(outcome.body.decode().strip())
    outcomes = answer(handler, request(b"1", number=0), request(b"3", number=1), request(b"2", number=2))
    assert [o.body.decode().strip() for o in outcomes] == ["id-0:0 of 3", "id-1:0 of 1", "id-2:0 of 2"]
    assert sent == ["id-1:2 of 3", "id-2:1 of 3", "id-1:1 of 2"]


def test_sequences(tmp_path: Path) -> None:
    """A stateful handler finds a request's sequence by its header, as TorchServe's example does."""
    source = """
class Sum:
    def initialize(self, context): context.cache = {}
    def handle(self, data, context):
        answers = []
        for index, row in enumerate(data):
            name = context.get_sequence_id(index)
            context.cache[name] = context.cache.get(name, 0) + int(row["body"])
            answers.append(context.cache[name])
            if context.get_request_header(index, "ts_request_sequence_end") == "true":
                del context.cache[name]
        return answers
"""
    handler = load(tmp_path, source)
    steps: list[tuple[bytes, dict[str, str]]] = [
        (b"1", {}),
        (b"2", {}),
        (b"3", {"ts_request_sequence_end": "true"}),
    ]
    sums = [ask(handler, body, ts_request_sequence_id="s", **more).body for body, more in steps]
    assert sums == [b"1", b"3", b"6"]
    assert ask(handler, b"5", ts_request_sequence_id="s").body == b"5"


MEASURES = """
from ts.metrics.dimension import Dimension
def handle(data, context):
    if data is None: return
    context.metrics.add_counter("Seen", len(data))
    context.metrics.add_size("Size", 2, None, "kB", [Dimension("Kind", "x")])
    return [1] * len(data)
"""


@pytest.mark.parametrize("protected", [False, True])
def test_metrics(tmp_path: Path, protected: bool) -> None:
    """What a handler measures can be taken once, summed; a protected worker keeps nothing of it."""
    handler = load(tmp_path, MEASURES, protected=protected)
    ask(handler)
    ask(handler)
    samples = {item.name: item for item in handler.take_metrics()}
    if protected:
        assert samples == {}
        return
    assert samples["Seen"].value == 2
    assert samples["Seen"].dimensions == [("ModelName", "m"), ("Level", "Model")]
    assert samples["Size"].dimensions[0] == ("Kind", "x")
    assert samples["Size"].unit == "Kilobytes"
    assert "PredictionTime" in samples
    assert [item.name for item in handler.take_metrics()] == []


def test_batch_of_good_and_bad(tmp_path: Path) -> None:
    """Of a batch with bad requests the good ones are answered, and each bad one hears its own reason."""
    source = "def handle(data, c):\n  return data and [1 / int(d['body']) for d in data]"
    handler = load(tmp_path, source)
    bodies: list[Any] = [b"1", b"x", b"2", b"y"]
    outcomes = answer(handler, *(request(body, number=n) for n, body in enumerate(bodies)))
    assert [outcome.status for outcome in outcomes] == [200, 400, 200, 400]
    faults = [outcome.fault for outcome in outcomes if outcome.fault]
    assert ["'x'" in faults[0].text, "'y'" in faults[1].text] == [True, True]


def test_a_broken_picture_is_its_senders_fault(tmp_path: Path) -> None:
    """A picture that is cut off or broken is 400, whatever PIL calls it; the system's own errors are not."""
    image = pytest.importorskip("PIL.Image")
    out = io.BytesIO()
    image.effect_noise((64, 64), 50).save(out, "JPEG")
    jpeg = out.getvalue()
    code = (
        "import io\nfrom PIL import Image\ndef handle(data, c):\n  body = data and data[0]['body']\n"
        "  if body == b'missing':\n    Image.open('/nowhere.png')\n  if body == b'own':\n    raise OSError\n"
        "  if body:\n    Image.open(io.BytesIO(body)).convert('RGB')\n  return ['read']"
    )
    handler = load(tmp_path, code)
    for body, status in ((jpeg, 200), (jpeg[:-400], 400), (b"junk", 400), (b"missing", 503), (b"own", 503)):
        assert ask(handler, body, "image/jpeg").status == status, body[:10]
