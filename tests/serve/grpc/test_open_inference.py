"""Open Inference Protocol v2 over gRPC, with the public client and with TorchServe's name for it."""

from __future__ import annotations

import time
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from cloister.serve.grpc.messages import message
from cloister.serve.oip.datatypes import DATATYPES
from tests.serve.grpc.conftest import Site
from tests.serve.grpc.stubs import Stub, failure

OURS = "inference.GRPCInferenceService"
TORCHSERVES = "org.pytorch.serve.grpc.openinference.GRPCInferenceService"


def tensor(name: str, datatype: str, array: Any) -> triton.InferInput:
    found = triton.InferInput(name, list(array.shape), datatype)
    found.set_data_from_numpy(array)
    return found


def infer_request(**members: Any) -> Any:
    return message("inference.ModelInferRequest")(model_name="m", **members)


def typed(datatype: str, shape: list[int], **contents: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": datatype, "shape": shape, "contents": contents}


def test_health_and_metadata(site: Site) -> None:
    """The public client sees a live server, a ready model, and their names."""
    with triton.InferenceServerClient(site.grpc) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("m")
        assert client.is_model_ready("m", "1.0")
        assert client.get_server_metadata().name == "cloister"
        metadata = client.get_model_metadata("m")
        assert (metadata.name, list(metadata.versions)) == ("m", ["1.0"])
        with pytest.raises(InferenceServerException, match="NOT_FOUND"):
            client.get_model_metadata("nothing")


@pytest.mark.parametrize("datatype", sorted(set(DATATYPES) - {"BF16", "BYTES"}))
def test_every_datatype(site: Site, datatype: str) -> None:
    """The public client sends each datatype raw, and gets the same back."""
    array = np.array([[0, 1], [1, 0]]).astype(DATATYPES[datatype])
    with triton.InferenceServerClient(site.grpc) as client:
        result = client.infer("m", [tensor("x", datatype, array)], request_id="7")
    assert result.get_response().id == "7"
    found = result.as_numpy("x")
    assert found.dtype == array.dtype
    assert found.tolist() == array.tolist()


def test_text_and_chosen_outputs(site: Site) -> None:
    """BYTES pass whole, and only the outputs asked for come."""
    words = np.array([b"one", b"\xff\x00"], dtype=object)
    number = np.array([5], np.int32)
    with triton.InferenceServerClient(site.grpc) as client:
        inputs = [tensor("words", "BYTES", words), tensor("n", "INT32", number)]
        result = client.infer("m", inputs, outputs=[triton.InferRequestedOutput("words")])
    assert result.as_numpy("words").tolist() == [b"one", b"\xff\x00"]
    assert result.as_numpy("n") is None


@pytest.mark.parametrize("service", [OURS, TORCHSERVES])
@pytest.mark.parametrize(
    ("datatype", "field", "elements"),
    [
        ("FP32", "fp32_contents", [0.5, 1.5]),
        ("FP64", "fp64_contents", [0.1, 0.2]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT64", "int64_contents", [-(1 << 63), (1 << 63) - 1]),
        ("UINT16", "uint_contents", [0, 65_535]),
        ("UINT64", "uint64_contents", [0, (1 << 64) - 1]),
        ("BOOL", "bool_contents", [True, False]),
        ("BYTES", "bytes_contents", [b"one", b"\xff"]),
    ],
)
def test_typed_contents(site: Site, service: str, datatype: str, field: str, elements: list[Any]) -> None:
    """Typed contents are answered with typed contents, under both names of the service."""
    with grpc.insecure_channel(site.grpc) as channel:
        stub = Stub(channel, service, described_as=OURS)
        answer = stub.ModelInfer(infer_request(inputs=[typed(datatype, [2], **{field: elements})]))
    (output,) = answer.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("x", datatype, [2])
    assert list(getattr(output.contents, field)) == elements
    assert not answer.raw_output_contents
    assert (answer.model_name, answer.model_version) == ("m", "1.0")


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (infer_request(), "inputs is not"),
        (infer_request(inputs=[typed("FP32", [3], fp32_contents=[1.0])]), "does not go with"),
        (infer_request(inputs=[typed("FP32", [1], fp64_contents=[1.0])]), "fp32_contents"),
        (infer_request(inputs=[typed("INT8", [1], int_contents=[128])]), "out of the range"),
        (infer_request(inputs=[typed("FP16", [1], fp32_contents=[1.0])]), "raw_input_contents"),
        (infer_request(inputs=[typed("FP8", [1])]), "unknown datatype"),
        (infer_request(inputs=[typed("FP32", [1])], raw_input_contents=[b"1234"]), "beside"),
        (infer_request(inputs=[typed("FP32", [1])], raw_input_contents=[b"1", b"2"]), "2 raw contents"),
        (
            infer_request(
                inputs=[{"name": "x", "datatype": "FP32", "shape": [2]}], raw_input_contents=[b"1234"]
            ),
            "does not go with",
        ),
        (infer_request(parameters={"p": {}}), "no value"),
        (
            infer_request(inputs=[typed("FP32", [1], fp32_contents=[1.0])], outputs=[{"name": "none"}]),
            "no output 'none'",
        ),
        (
            infer_request(
                inputs=[typed("FP32", [1], fp32_contents=[1.0])], parameters={"fail": {"bool_param": True}}
            ),
            "not like this",
        ),
    ],
)
def test_mistakes(site: Site, request_: Any, reason: str) -> None:
    """What does not fit together is INVALID_ARGUMENT, with the reason."""
    with grpc.insecure_channel(site.grpc) as channel:
        code, details = failure(Stub(channel, OURS).ModelInfer, request_)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert reason in details


def test_no_such_model(site: Site) -> None:
    """A model that is not there is NOT_FOUND; no name at all is a mistake of the caller."""
    with grpc.insecure_channel(site.grpc) as channel:
        stub = Stub(channel, OURS)
        assert failure(stub.ModelInfer, message("inference.ModelInferRequest")(model_name="x"))[0] is (
            grpc.StatusCode.NOT_FOUND
        )
        assert failure(stub.ModelReady, message("inference.ModelReadyRequest")())[0] is (
            grpc.StatusCode.INVALID_ARGUMENT
        )


def test_deadline(site: Site) -> None:
    """The public client's timeout is kept, and the next request is answered."""
    with triton.InferenceServerClient(site.grpc) as client:
        inputs = [tensor("x", "INT32", np.array([1], np.int32))]
        started = time.monotonic()
        with pytest.raises(InferenceServerException, match=r"(?i)deadline"):
            client.infer("m", inputs, parameters={"sleep": 1}, client_timeout=0.2)
        assert time.monotonic() - started < 0.9
        assert client.infer("m", inputs).as_numpy("x").tolist() == [1]


def test_health_service(site: Site) -> None:
    """``grpc.health.v1`` knows the server and each model, and watches without noise."""
    with grpc.insecure_channel(site.grpc) as channel:
        stub = Stub(channel, "grpc.health.v1.Health")
        request = message("grpc.health.v1.HealthCheckRequest")
        assert stub.Check(request()).status == 1
        assert stub.Check(request(service="m")).status == 1
        assert failure(stub.Check, request(service="x"))[0] is grpc.StatusCode.NOT_FOUND
        watching = stub.Watch(request(service="x"))
        assert next(watching).status == 3
        watching.cancel()
