"""TorchServe's inference service, against a real server."""

from __future__ import annotations

import json
import time
from pathlib import Path

import grpc
import pytest

from cloister.serve.grpc.messages import message
from tests.serve.grpc.conftest import Site
from tests.serve.grpc.stubs import failure, predictions

EMPTY = message("google.protobuf.Empty")()


def test_ping(site: Site) -> None:
    """Health is TorchServe's JSON."""
    assert json.loads(site.inference().Ping(EMPTY).health) == {"status": "Healthy"}


def test_fields_reach_the_handler(site: Site) -> None:
    """Each entry of ``input`` is a field of the handler's row, as bytes, whatever is in it."""
    sent = {"data": b"\x00\xff", "a name": b"--\r\n", 'with "quotes" \\': b"x", "empty": b""}
    answer = json.loads(site.inference().Predictions(predictions("m", **sent)).prediction)
    assert answer == {name: ["bytearray", value.decode("latin-1")] for name, value in sent.items()}


def test_a_lone_body(site: Site) -> None:
    """A lone ``body`` is the body."""
    answer = site.inference().Predictions(predictions("m", body=b"\xff\x00"))
    assert json.loads(answer.prediction) == {"body": ["bytearray", "\xff\x00"]}


@pytest.mark.parametrize(
    ("model", "code", "details"),
    [
        ("", grpc.StatusCode.INTERNAL, "Parameter model_name is required.\nBadRequestException.()"),
        (
            "nothing",
            grpc.StatusCode.INTERNAL,
            "Model not found: nothing\norg.pytorch.serve.archive.model.ModelNotFoundException",
        ),
    ],
)
def test_no_such_model(site: Site, model: str, code: grpc.StatusCode, details: str) -> None:
    """Code and words are TorchServe's."""
    stub = site.inference()
    assert failure(stub.Predictions, predictions(model, data=b"")) == (code, details)
    assert failure(stub.StreamPredictions, predictions(model, data=b"")) == (code, details)


def test_no_such_version(site: Site) -> None:
    """A version that is not there is no model."""
    request = predictions("m", data=b"")
    request.model_version = "9"
    assert failure(site.inference().Predictions, request)[0] is grpc.StatusCode.INTERNAL
    request.model_version = "1.0"
    assert site.inference().Predictions(request).prediction


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (b"fail", grpc.StatusCode.INVALID_ARGUMENT, "not like this"),
        (b"break", grpc.StatusCode.UNAVAILABLE, "Prediction failed"),
        (b"teapot", grpc.StatusCode.FAILED_PRECONDITION, "short and stout"),
    ],
)
def test_failures(site: Site, command: bytes, code: grpc.StatusCode, words: str) -> None:
    """What HTTP says by its status, gRPC says by its code, with the reason."""
    found, details = failure(site.inference().Predictions, predictions("m", data=command))
    assert found is code
    assert words in details


def test_names_that_no_field_can_have(site: Site) -> None:
    """A name that would break the form is refused, and nothing of it is computed."""
    code, details = failure(site.inference().Predictions, predictions("m", **{"a\r\nb": b"x"}))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "name in input" in details


def test_stream(site: Site) -> None:
    """The parts come as the handler sends them, the last one included."""
    parts = list(site.inference().StreamPredictions(predictions("m", data=b"stream")))
    assert b"".join(part.prediction for part in parts) == b"part 0;part 1;part 2;end"
    assert len(parts) == 4


def test_stream_of_one_part(site: Site) -> None:
    """A handler that does not stream answers with one message."""
    (part,) = site.inference().StreamPredictions(predictions("m", data=b"x"))
    assert json.loads(part.prediction) == {"data": ["bytearray", "x"]}


def test_sequences(site: Site) -> None:
    """Requests of a stream are answered in their order; the handler is told of their sequence."""
    requests = [
        predictions("m", "s1", data=b"sequence"),
        predictions("m", data=b"sequence", ts_request_sequence_start=b"true"),
        predictions("m", "s1", data=b"sequence", ts_request_sequence_end=b"TRUE"),
    ]
    answers = list(site.inference().StreamPredictions2(iter(requests)))
    told = [json.loads(answer.prediction) for answer in answers]
    assert [item["ts_request_sequence_start"] for item in told] == [None, "true", None]
    assert [item["ts_request_sequence_end"] for item in told] == [None, None, "true"]
    assert [answer.sequence_id for answer in answers] == [item["ts_request_sequence_id"] for item in told]
    assert told[0]["ts_request_sequence_id"] == told[2]["ts_request_sequence_id"] == "s1"
    assert told[1]["ts_request_sequence_id"].startswith("ts-seq-")


def test_a_failure_does_not_end_the_stream(site: Site) -> None:
    """A request that fails is answered with its status, and the next one is computed."""
    requests = [
        predictions("m", data=b"x"),
        predictions("nothing", "s", data=b"x"),
        predictions("m", "s", data=b"fail"),
        predictions("m", "s", data=b"x"),
    ]
    answers = list(site.inference().StreamPredictions2(iter(requests)))
    assert [answer.status.code for answer in answers] == [13, 13, 3, 0]
    assert answers[0].status.message == "Parameter sequenceId is required."
    info = message("google.rpc.ErrorInfo")()
    assert answers[1].status.details[0].Unpack(info)
    assert info.reason == "org.pytorch.serve.archive.model.ModelNotFoundException"
    assert answers[3].prediction


def test_deadline_is_kept(site: Site, tmp_path: Path) -> None:
    """A request whose time is over while it waits is not computed."""
    stub, note = site.inference(), tmp_path / "computed"
    first = stub.Predictions.future(predictions("m", data=b"sleep"))
    time.sleep(0.1)
    request = predictions("m", data=b"note", file=str(note).encode())
    code, _ = failure(stub.Predictions, request, timeout=0.2)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert first.result().prediction
    assert site.inference().Predictions(predictions("m", data=b"x")).prediction
    assert not note.exists()


def test_cancelled_call_is_not_computed(site: Site, tmp_path: Path) -> None:
    """A caller that goes takes its waiting request with it; others are not disturbed."""
    stub, note = site.inference(), tmp_path / "computed"
    first = stub.Predictions.future(predictions("m", data=b"sleep"))
    time.sleep(0.1)
    gone = stub.Predictions.future(predictions("m", data=b"note", file=str(note).encode()))
    time.sleep(0.1)
    gone.cancel()
    assert first.result().prediction
    assert stub.Predictions(predictions("m", data=b"x")).prediction
    assert not note.exists()


def test_cancelled_stream(site: Site) -> None:
    """A stream that its reader leaves does not hold the worker."""
    stub = site.inference()
    for _ in range(5):
        parts = stub.StreamPredictions(predictions("m", data=b"stream"))
        next(parts)
        parts.cancel()
    assert stub.Predictions(predictions("m", data=b"x")).prediction
