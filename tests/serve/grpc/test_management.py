"""TorchServe's management service, against a real server."""

from __future__ import annotations

import json

import grpc
import pytest

from tests.serve.grpc.conftest import Site
from tests.serve.grpc.stubs import MANAGEMENT_SERVICE, Stub, failure, management, predictions

INVALID, MISSING = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


def test_life_of_a_model(site: Site) -> None:
    """Register, predict, scale, describe, choose a version, unregister."""
    stub = site.management()
    answer = stub.RegisterModel(
        management("RegisterModelRequest", url="other.mar", initial_workers=1, synchronous=True)
    )
    assert answer.msg == 'Model "other" Version: 1.0 registered with 1 initial workers'
    stub.RegisterModel(
        management("RegisterModelRequest", url="other-2.mar", initial_workers=1, synchronous=True)
    )
    assert site.inference().Predictions(predictions("other", data=b"x")).prediction
    scale = management("ScaleWorkerRequest", model_name="other", min_worker=2, synchronous=True)
    assert stub.ScaleWorker(scale).msg == "Workers scaled to 2 for model: other"
    (facts,) = json.loads(stub.DescribeModel(management("DescribeModelRequest", model_name="other")).msg)
    assert (facts["modelVersion"], len(facts["workers"])) == ("1.0", 2)
    every = management("DescribeModelRequest", model_name="other", model_version="all")
    assert [item["modelVersion"] for item in json.loads(stub.DescribeModel(every).msg)] == ["1.0", "2.0"]
    chosen = stub.SetDefault(management("SetDefaultRequest", model_name="other", model_version="2.0"))
    assert chosen.msg == 'Default version successfully updated for model "other" to "2.0"'
    for version in ("1.0", ""):
        gone = stub.UnregisterModel(
            management("UnregisterModelRequest", model_name="other", model_version=version)
        )
        assert gone.msg == 'Model "other" unregistered'
    listed = json.loads(stub.ListModels(management("ListModelsRequest")).msg)
    assert [item["modelName"] for item in listed["models"]] == ["m"]


def test_customized_metadata(site: Site) -> None:
    """The handler's own words are part of the description, as JSON."""
    request = management("DescribeModelRequest", model_name="m", customized=True)
    (facts,) = json.loads(site.management().DescribeModel(request).msg)
    assert facts["customizedMetadata"] == {"says": "hello"}


def test_pages(site: Site) -> None:
    """A page has as many names as asked for; a limit that is none means TorchServe's 100."""
    stub = site.management()
    for limit in (1, 0, -1):
        assert (
            len(json.loads(stub.ListModels(management("ListModelsRequest", limit=limit)).msg)["models"]) == 1
        )
    beyond = management("ListModelsRequest", next_page_token=12)
    assert json.loads(stub.ListModels(beyond).msg)["models"] == []


@pytest.mark.parametrize(
    ("method", "kind", "members", "code"),
    [
        ("DescribeModel", "DescribeModelRequest", {"model_name": "x"}, MISSING),
        ("DescribeModel", "DescribeModelRequest", {"model_name": "m", "model_version": "9"}, MISSING),
        ("DescribeModel", "DescribeModelRequest", {"model_name": "x", "customized": True}, MISSING),
        ("ScaleWorker", "ScaleWorkerRequest", {"model_name": "x"}, MISSING),
        ("ScaleWorker", "ScaleWorkerRequest", {"model_name": "m", "min_worker": 2, "max_worker": 1}, INVALID),
        ("SetDefault", "SetDefaultRequest", {"model_name": "m", "model_version": "9"}, MISSING),
        ("SetDefault", "SetDefaultRequest", {"model_name": "x", "model_version": "1"}, MISSING),
        ("UnregisterModel", "UnregisterModelRequest", {"model_name": "x"}, MISSING),
        ("UnregisterModel", "UnregisterModelRequest", {}, INVALID),
        ("RegisterModel", "RegisterModelRequest", {}, INVALID),
        ("RegisterModel", "RegisterModelRequest", {"url": "m.mar", "runtime": "python4"}, INVALID),
        ("RegisterModel", "RegisterModelRequest", {"url": "m.mar"}, INVALID),
        ("RegisterModel", "RegisterModelRequest", {"url": "none.mar"}, MISSING),
        ("RegisterModel", "RegisterModelRequest", {"url": "../m.mar"}, MISSING),
        ("RegisterModel", "RegisterModelRequest", {"url": "http://127.0.0.1:1/m.mar"}, MISSING),
    ],
)
def test_refusals(
    site: Site, method: str, kind: str, members: dict[str, object], code: grpc.StatusCode
) -> None:
    """Each mistake has TorchServe's code, a reason, and the name of TorchServe's exception."""
    found, details = failure(getattr(site.management(), method), management(kind, **members))
    assert found is code, details
    reason, _, name = details.rpartition("\n")
    assert reason
    assert name.startswith("org.pytorch.serve.")


def test_management_is_not_on_the_inference_port(site: Site) -> None:
    """Each port has its own service, and nothing of the other's."""
    with grpc.insecure_channel(site.grpc) as channel:
        code, _ = failure(Stub(channel, MANAGEMENT_SERVICE).ListModels, management("ListModelsRequest"))
        assert code is grpc.StatusCode.UNIMPLEMENTED
