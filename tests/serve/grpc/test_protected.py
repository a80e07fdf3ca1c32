"""gRPC of a protected server: under the key that its evidence speaks of."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tritonclient import grpc as triton

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.simulated import SimulatedPlatform
from cloister.client.session import Client
from tests.processes.server import Server, free_port
from tests.processes.test_protected import CANARIES, World, world
from tests.serve.grpc.stubs import (
    INFERENCE_SERVICE,
    MANAGEMENT_SERVICE,
    Stub,
    failure,
    management,
    predictions,
)

__all__ = ["world"]


@pytest.fixture(scope="module")
def flags(world: World) -> dict[str, Any]:
    """Settings of a protected server with gRPC, which the broker expects."""
    made = {
        **world.flags,
        "serve.http_port": 0,
        "serve.grpc_port": free_port(),
        "serve.grpc_management_port": free_port(),
        "serve.key_file": str(world.folder / "key_file.json"),
    }
    (world.folder / "reference.toml").write_text(world.reference_values(made))
    return made


@pytest.fixture(scope="module")
def server(world: World, flags: dict[str, Any]) -> Iterator[Server]:
    """That server."""
    with Server(flags, environment={"HOME": str(world.folder / "home")}) as running:
        running.wait_ready()
        yield running
        assert running.stop() == 0
        assert not [name for name, text in CANARIES.items() if text in running.stdout + running.stderr]


def verified_root(world: World, server: Server, flags: dict[str, Any], port: int) -> bytes:
    """The certificate of a gRPC port, after its key was found in the evidence."""
    reference = ReferenceValues.from_toml(world.reference_values(flags))
    roots = [SimulatedPlatform.load(world.folder / "platform").root]
    with Client(server.url, reference_values=reference, roots=roots) as client:
        attested = client.verify().identity.tls_spki
    pem = ssl.get_server_certificate(("127.0.0.1", port)).encode()
    key = x509.load_pem_x509_certificate(pem).public_key()
    assert key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == attested
    return pem


def test_verified_caller(world: World, server: Server, flags: dict[str, Any]) -> None:
    """A caller that has verified the key predicts by gRPC; others do not get in."""
    port = flags["serve.grpc_port"]
    root = verified_root(world, server, flags, port)
    request = predictions("own", body=CANARIES["request"].encode())
    with grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(root)) as channel:
        stub = Stub(channel, INFERENCE_SERVICE)
        assert stub.Predictions(request).prediction.startswith(CANARIES["answer"].encode())
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        code, _ = failure(Stub(channel, INFERENCE_SERVICE).Predictions, request, timeout=5)
        assert code is grpc.StatusCode.UNAVAILABLE


def test_open_inference_in_the_sandbox(world: World, server: Server, flags: dict[str, Any]) -> None:
    """The public client's tensors are decoded inside the sandbox; it is given the verified root."""
    port = flags["serve.grpc_port"]
    root = world.folder / "root.pem"
    root.write_bytes(verified_root(world, server, flags, port))
    words = triton.InferInput("words", [1], "BYTES")
    words.set_data_from_numpy(np.array([CANARIES["request"].encode()], dtype=object))
    address = f"127.0.0.1:{port}"
    with triton.InferenceServerClient(address, ssl=True, root_certificates=str(root)) as client:
        (answer,) = client.infer("own", [words]).as_numpy("output-0").tolist()
    assert answer.startswith(CANARIES["answer"].encode())


def test_management_needs_a_token(world: World, server: Server, flags: dict[str, Any]) -> None:
    """Management of a protected server asks for its token, and the model API is off."""
    port = flags["serve.grpc_management_port"]
    root = verified_root(world, server, flags, port)
    with grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(root)) as channel:
        code, _ = failure(Stub(channel, MANAGEMENT_SERVICE).ListModels, management("ListModelsRequest"))
        assert code is grpc.StatusCode.PERMISSION_DENIED


def test_tracing_stops_the_start(world: World, flags: dict[str, Any]) -> None:
    """A protected server does not start where gRPC would print what callers send."""
    other = {**flags, "serve.host": "127.0.0.3"}
    (world.folder / "reference.toml").write_text(world.reference_values(flags, other))
    with Server(other, environment={"GRPC_TRACE": "all"}) as refused:
        assert refused.finish() == 2
        assert "GRPC_TRACE" in refused.stderr.splitlines()[-1]
