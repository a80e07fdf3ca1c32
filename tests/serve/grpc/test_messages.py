"""The compiled messages are what the ``.proto`` files say."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from cloister.serve.grpc.messages import DESCRIPTORS, message

FILES = ("inference.proto", "management.proto", "open_inference.proto", "health.proto")


def test_descriptors_are_up_to_date(tmp_path: Path) -> None:
    """``descriptors.binpb`` is what ``protoc`` makes of the ``.proto`` files beside it."""
    tools = pytest.importorskip("grpc_tools")
    folder = resources.files("cloister.serve.grpc") / "protos"
    made = tmp_path / DESCRIPTORS
    included = Path(tools.__file__).parent / "_proto"
    files = (*FILES, "google/rpc/error_details.proto")
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}", f"-I{included}", "--include_imports"]
    subprocess.run([*command, f"--descriptor_set_out={made}", *files], check=True)
    assert made.read_bytes() == (folder / DESCRIPTORS).read_bytes()


def test_no_clash_with_another_copy() -> None:
    """A program may load ``tritonclient``'s messages of the same names too, before or after ours."""
    from tritonclient.grpc import service_pb2

    ours = message("inference.ModelInferRequest")(model_name="m", id="1")
    theirs = service_pb2.ModelInferRequest.FromString(ours.SerializeToString())
    assert (theirs.model_name, theirs.id) == ("m", "1")
