"""Requests to answers around an engine: forms in and out, batches, failures."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.engines.files import ModelFiles
from cloister.engines.schema import ModelSchema, TensorSpec
from cloister.engines.spec import EngineSpec, ImageSpec, InputSpec, OutputSpec, ServedSpec, TopSpec
from cloister.errors import ConfigError, MalformedInput
from cloister.serve.direct.gate import InputGate
from cloister.serve.direct.inputs import Given
from cloister.serve.direct.model import DirectModel, Ready, group, options_of
from cloister.serve.direct.outputs import OutputWriter, read_labels
from cloister.serve.direct.session import DirectHandler, capacity_of, is_quick, lanes_of
from cloister.serve.handler import Outcome
from cloister.serve.incoming import Head, Incoming
from tests.serve.direct.doubler import SCHEMA, Doubler

ENGINE = EngineSpec(kind="none", file="none")


def request(body: bytes, kind: str = "application/json", number: int = 1, *, oip: bool = False) -> Incoming:
    head = Head({"content-type": kind}, kind, kind == "application/json", ("m", "1.0") if oip else None)
    made = Incoming(number, str(number), head, b"", body)
    made.prepare()
    return made


def handler(spec: ServedSpec | None = None, engine: Doubler | None = None) -> DirectHandler:
    model = DirectModel(engine or Doubler(), spec or ServedSpec(ENGINE), ModelFiles({}), show_text=False)
    return DirectHandler(model)


def ask(body: Any, **options: Any) -> Any:
    (outcome,) = handler().run([request(json.dumps(body).encode(), **options)])
    assert outcome.status == 200, outcome.fault
    return json.loads(outcome.body)


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ([[1, 2], [3, 4]], [[2, 4], [6, 8]]),
        ([1, 2], [2, 4]),
        ({"x": [1, 2]}, [2, 4]),
        ({"instances": [[1, 2]]}, {"predictions": [[2, 4]]}),
    ],
)
def test_json_is_answered_in_its_own_form(body: Any, answer: Any) -> None:
    """Rows for rows, one row for one row, predictions for instances."""
    assert ask(body) == answer


def test_tensors_are_answered_with_tensors() -> None:
    """A request of the Open Inference Protocol gets the outputs by their names."""
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
    (output,) = ask(body, oip=True)["outputs"]
    assert output == {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [2.0, 4.0]}


def test_npy_is_answered_with_npy() -> None:
    """Arrays go in and out without a list between; either byte order is read."""
    for dtype in ("<f4", ">f4"):
        buffer = io.BytesIO()
        np.save(buffer, np.array([[1, 2]], dtype))
        (outcome,) = handler().run([request(buffer.getvalue(), "application/octet-stream")])
        assert outcome.headers == [(b"content-type", b"application/x-npy")]
        np.testing.assert_array_equal(np.load(io.BytesIO(outcome.body)), [[2, 4]])


def test_npy_with_objects_is_refused() -> None:
    """It would be code of the caller's."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], object), allow_pickle=True)
    (outcome,) = handler().run([request(buffer.getvalue(), "application/octet-stream")])
    assert outcome.status == 400


def npy(header: str) -> bytes:
    """A numpy file with any header and no content."""
    raw = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw


@pytest.mark.parametrize(
    "header",
    [
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({1 << 70},), }}",
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({1 << 60},), }}",
        "{'descr': '<f4',",
        "{'descr': ('<f4',), 'fortran_order': False, 'shape': (1,), }",
        "{'descr': [()], 'fortran_order': False, 'shape': (1,), }",
        "[" * 5000,
    ],
)
def test_npy_that_is_broken_is_refused(header: str) -> None:
    """Whatever is wrong with its header, it is its sender's fault, and the worker goes on."""
    (outcome,) = handler().run([request(npy(header), "application/octet-stream")])
    assert outcome.status == 400


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_answered(noise: bytes, framed: bool) -> None:
    """Numpy files of noise raise nothing."""
    body = npy(noise.decode("latin-1")) if framed else b"\x93NUMPY" + noise
    (outcome,) = handler().run([request(body, "application/octet-stream")])
    assert outcome.status in (200, 400)


@pytest.mark.parametrize(
    "body", [b"[1, 2]", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }")]
)
def test_an_answer_without_rows_is_a_failure(body: bytes) -> None:
    """A detector that finds nothing gives no row where one was asked for: no worker ends with that."""

    class Nothing(Doubler):
        def infer(self, inputs: Any) -> Any:
            return {"y": np.zeros((0, 2), np.float32)}

    kind = "application/json" if body[:1] == b"[" else "application/octet-stream"
    content = body if kind == "application/json" else body + bytes(8)
    (outcome,) = handler(engine=Nothing()).run([request(content, kind)])
    assert outcome.status == 503
    assert outcome.fault is not None


@pytest.mark.parametrize(("finds", "answer"), [([[1, 2], [3, 4]], [[1, 2], [3, 4]]), (5, 5)])
def test_an_answer_that_is_no_row_for_a_row_is_whole(finds: Any, answer: Any) -> None:
    """A detector's finds in one picture are several rows, and a sum is none: nothing is left out."""

    class Detector(Doubler):
        def infer(self, inputs: Any) -> Any:
            return {"y": np.asarray(finds, np.float32)}

    (outcome,) = handler(engine=Detector()).run([request(b"[1, 2]")])
    assert json.loads(outcome.body) == answer
    body = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }") + bytes(8)
    (outcome,) = handler(engine=Detector()).run([request(body, "application/octet-stream")])
    np.testing.assert_array_equal(np.load(io.BytesIO(outcome.body)), answer)


def test_a_model_that_cannot_compute_with_zeros_is_served() -> None:
    """What it is warmed up with is nobody's request, so its failure is no reason not to load it."""

    class Inverse(Doubler):
        def infer(self, inputs: Any) -> Any:
            if not inputs["x"].any():
                raise RuntimeError("singular")
            return super().infer(inputs)

    model = DirectModel(Inverse(), ServedSpec(ENGINE), ModelFiles({}), show_text=False)
    model.warm_up()
    (outcome,) = DirectHandler(model).run([request(b"[1, 2]")])
    assert json.loads(outcome.body) == [2, 4]


def test_of_two_classes_of_one_name_the_higher_score_counts() -> None:
    """Bird and machine are both called crane; a sure bird is not answered with the machine's score."""
    top = TopSpec(count=3, labels="names.json", softmax=False)
    writer = OutputWriter(SCHEMA, OutputSpec(top=top), ModelFiles({"names.json": b'["crane","dog","crane"]'}))
    outputs = {"y": np.array([[0.9, 0.08, 0.02]], np.float32)}
    body, _ = writer.write(request(b"[]"), Given({}, 1, "named", True), outputs)
    assert json.loads(body) == pytest.approx({"crane": 0.9, "dog": 0.08})


def test_an_input_without_dimensions_is_a_number() -> None:
    """A temperature beside the rows: the frontend takes it as the worker does, and one row stays one row."""

    class Scaled(Doubler):
        def infer(self, inputs: Any) -> Any:
            return {"y": inputs["x"] * inputs["by"]}

    engine = Scaled()
    engine.schema = ModelSchema((*SCHEMA.inputs, TensorSpec("by", "FP32", ())), SCHEMA.outputs)
    content = b'{"x": [1, 2], "by": 0.5}'
    InputGate(engine.schema, most_bytes=512).check([(b"content-type", b"application/json")], content)
    (outcome,) = handler(engine=engine).run([request(content)])
    assert json.loads(outcome.body) == [0.5, 1]
    with pytest.raises(MalformedInput, match=r"by FP32\[1\]"):
        InputGate(engine.schema, most_bytes=512).check(
            [(b"content-type", b"application/json")], b'{"x": [1, 2], "by": [0.5]}'
        )


def test_the_top_classes_have_names() -> None:
    """The highest scores with their labels, as probabilities that sum to one."""
    spec = ServedSpec(ENGINE, output=OutputSpec(top=TopSpec(count=2, labels="names.json")))
    files = ModelFiles({"names.json": b'{"0": ["n01", "cat"], "1": "dog"}'})
    runner = DirectHandler(DirectModel(Doubler(), spec, files, show_text=False))
    (one, many) = runner.run([request(b"[0, 1]"), request(b'{"instances": [[1, 0]]}', number=2)])
    answer = json.loads(one.body)
    assert list(answer) == ["dog", "cat"]
    assert sum(answer.values()) == pytest.approx(1)
    assert list(json.loads(many.body)["predictions"][0]) == ["cat", "dog"]


def test_requests_go_through_together() -> None:
    """As many rows in one inference as the engine likes; each request gets its own."""
    engine = Doubler(rows=4)
    bodies = [[[n, n]] * size for n, size in enumerate((1, 2, 1, 3, 1, 9))]
    requests = [request(json.dumps(body).encode(), number=n) for n, body in enumerate(bodies)]
    outcomes = handler(engine=engine).run(requests)
    assert engine.sizes == [4, 4, 9]
    assert [json.loads(item.body) for item in outcomes] == [
        [[2 * n, 2 * n]] * len(b) for n, b in enumerate(bodies)
    ]


def test_a_bad_request_fails_alone() -> None:
    """Malformed, refused by the model or breaking it: each gets its own status, the others their answers."""
    bodies = [b"[1, 2]", b"[1]", b"[-1, 2]", b'"text"', b"[13, 1]", b"[3, 4]"]
    runner = handler(engine=Doubler(rows=16))
    outcomes = runner.run([request(body, number=n) for n, body in enumerate(bodies)])
    assert [item.status for item in outcomes] == [200, 400, 400, 400, 503, 200]
    assert [json.loads(outcomes[n].body) for n in (0, 5)] == [[2, 4], [6, 8]]
    fault = outcomes[4].fault
    assert fault is not None
    assert (fault.exception, fault.text) == ("RuntimeError", "")
    assert runner.calls == 1


def test_groups_are_of_one_size() -> None:
    """Requests whose other sizes differ do not go together."""

    def ready(number: int, width: int) -> Ready:
        arrays = {"x": np.zeros((1, width), np.float32)}
        return Ready(request(b"[]", number=number), Given(arrays, 1, "named", False))

    made = [ready(n, width) for n, width in enumerate((2, 3, 2, 2, 3))]
    numbers = [[item.request.number for item in part] for part in group(made, 2)]
    assert sorted(map(sorted, numbers)) == [[0, 2], [1, 4], [3]]


def test_unknown_outputs_and_labels_are_errors_at_the_start() -> None:
    """A name that the model has not, or a file that holds no labels."""
    for spec in (
        OutputSpec(tensors=("z",)),
        OutputSpec(top=TopSpec(tensor="z")),
        OutputSpec(top=TopSpec(labels="f")),
    ):
        with pytest.raises(ConfigError):
            OutputWriter(SCHEMA, spec, ModelFiles({}))
    for content in (b"7", b"{", b'{"a": "b"}', b'{"1": []}', b"\xff"):
        with pytest.raises(ConfigError):
            read_labels(content)


def test_several_outputs_come_by_name() -> None:
    """JSON has one member for each, rows of instances one object each."""
    schema = ModelSchema(SCHEMA.inputs, (TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "FP32", (-1,))))
    writer = OutputWriter(schema, OutputSpec(), ModelFiles({}))
    outputs = {"a": np.array([1.0, 2.0]), "b": np.array([3.0, 4.0])}
    named, _ = writer.write(request(b"[]"), Given({}, 2, "named", False), outputs)
    assert json.loads(named) == {"a": [1, 2], "b": [3, 4]}
    rows, _ = writer.write(request(b"[]"), Given({}, 2, "instances", False), outputs)
    assert json.loads(rows) == {"predictions": [{"a": 1, "b": 3}, {"a": 2, "b": 4}]}


def test_what_a_worker_is_given() -> None:
    """A quick model gets a whole inference at a time, a slow one enough to keep its streams full."""
    quick = DirectModel(Doubler(rows=64), ServedSpec(ENGINE), ModelFiles({}), show_text=False)
    slow = DirectModel(Doubler(rows=1, streams=4), ServedSpec(ENGINE), ModelFiles({}), show_text=False)
    assert is_quick(quick)
    assert capacity_of(quick) == 64
    assert not is_quick(slow)
    assert (lanes_of(slow), capacity_of(slow)) == (6, 7)
    few = DirectModel(Doubler(rows=4), ServedSpec(ENGINE), ModelFiles({}), show_text=False)
    assert not is_quick(few)
    assert (lanes_of(few), capacity_of(few)) == (2, 9)
    quick.reads_pictures = True
    assert not is_quick(quick)


@pytest.mark.parametrize(("said", "rows"), [(0, 4), (1, 1), (16, 16)])
def test_few_pictures_go_together(said: int, rows: int) -> None:
    """Unless the model says how many; without pictures the engine decides."""
    engine = EngineSpec("none", "none", rows=said)
    assert options_of(ServedSpec(engine, InputSpec(image=ImageSpec()))).rows == rows
    assert options_of(ServedSpec(engine)).rows == said


def test_the_body_may_be_in_a_form() -> None:
    """TorchServe's callers send files as a field named data."""
    head = b'Content-Disposition: form-data; name="data"; filename="x"\r\nContent-Type: application/json'
    body = b"--b\r\n" + head + b"\r\n\r\n[1, 2]\r\n--b--\r\n"
    (outcome,) = handler().run([request(body, "multipart/form-data; boundary=b")])
    assert json.loads(outcome.body) == [2, 4]
    (refused,) = handler().run(
        [request(body.replace(b'"data"', b'"else"'), "multipart/form-data; boundary=b")]
    )
    assert isinstance(refused, Outcome)
    assert refused.status == 400
