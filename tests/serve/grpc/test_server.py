"""The gRPC ports: limits, tokens, TLS, and what a start refuses."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from cloister.errors import ConfigError
from cloister.serve.control import ModelControl
from cloister.serve.grpc.messages import message
from cloister.serve.grpc.server import GrpcPort, read_pair, start_grpc
from cloister.serve.grpc_ports import refuse_tracing
from cloister.serve.identity import make_keys
from cloister.serve.registry import Registry
from cloister.settings import ServeSettings
from tests.processes.server import Server, free_port, pack
from tests.serve.grpc.conftest import HANDLER, Site
from tests.serve.grpc.stubs import (
    INFERENCE_SERVICE,
    MANAGEMENT_SERVICE,
    Stub,
    failure,
    management,
    predictions,
)

EMPTY = message("google.protobuf.Empty")()
REFUSED = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"
HEALTH = "grpc.health.v1.Health"


@dataclass
class Guarded:
    """A server with tokens and TLS, whose model API is off."""

    grpc: str
    grpc_management: str
    chain: bytes
    key_file: Path

    def channel(self, address: str) -> grpc.Channel:
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(self.chain))

    def token(self, kind: str) -> tuple[tuple[str, str], ...]:
        key = json.loads(self.key_file.read_text())[kind]["key"]
        return (("protocol", "gRPC"), ("authorization", f"Bearer {key}"))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """The server, with a certificate of its own."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "store").mkdir()
    pack(folder, "m", HANDLER).rename(folder / "store" / "m.mar")
    pair = make_keys("127.0.0.1").pem_pair()
    (folder / "key.pem").write_bytes(pair.key)
    (folder / "chain.pem").write_bytes(pair.chain)
    ports = free_port(), free_port()
    flags = {
        "serve.mode": "open",
        "serve.model_store": str(folder / "store"),
        "serve.http_port": free_port(),
        "serve.grpc_port": ports[0],
        "serve.grpc_management_port": ports[1],
        "serve.grpc_tls": True,
        "serve.certificate": str(folder / "chain.pem"),
        "serve.private_key": str(folder / "key.pem"),
        "serve.token_auth": True,
        "serve.key_file": str(folder / "key_file.json"),
    }
    with Server(flags) as server:
        server.wait_ready()
        addresses = [f"127.0.0.1:{port}" for port in ports]
        yield Guarded(*addresses, pair.chain, folder / "key_file.json")
        assert server.stop() == 0


def test_tokens(guarded: Guarded) -> None:
    """Each service takes its own token as TorchServe's clients send it, and refuses all else alike."""
    with guarded.channel(guarded.grpc) as first, guarded.channel(guarded.grpc_management) as second:
        inference, managing = Stub(first, INFERENCE_SERVICE), Stub(second, MANAGEMENT_SERVICE)
        refused = (grpc.StatusCode.PERMISSION_DENIED, REFUSED)
        wrong = (("authorization", "Bearer incorrect-token"),)
        for metadata in ((), wrong, guarded.token("management")):
            assert failure(inference.Ping, EMPTY, metadata=metadata) == refused
            for call in (inference.Predictions, inference.StreamPredictions):
                assert failure(call, predictions("m", data=b"x"), metadata=metadata) == refused
        listing, other = management("ListModelsRequest"), guarded.token("inference")
        assert failure(managing.ListModels, listing, metadata=other) == refused
        assert inference.Ping(EMPTY, metadata=guarded.token("inference")).health
        listed = managing.ListModels(listing, metadata=guarded.token("management"))
        assert json.loads(listed.msg)["models"][0]["modelName"] == "m"


def test_probes_need_no_token(guarded: Guarded) -> None:
    """A probe learns whether the server is up, and without a token nothing of its models."""
    with guarded.channel(guarded.grpc) as channel:
        stub, request = Stub(channel, HEALTH), message("grpc.health.v1.HealthCheckRequest")
        assert stub.Check(request()).status == 1
        assert failure(stub.Check, request(service="m"))[0] is grpc.StatusCode.PERMISSION_DENIED
        assert failure(stub.Watch, request(service="m"))[0] is grpc.StatusCode.PERMISSION_DENIED


def test_model_api_is_off_by_default(guarded: Guarded) -> None:
    """Without the model API nothing is registered or removed, in TorchServe's words."""
    with guarded.channel(guarded.grpc_management) as channel:
        stub, metadata = Stub(channel, MANAGEMENT_SERVICE), guarded.token("management")
        for call in (
            lambda: failure(stub.RegisterModel, management("RegisterModelRequest"), metadata=metadata),
            lambda: failure(stub.UnregisterModel, management("UnregisterModelRequest"), metadata=metadata),
        ):
            code, details = call()
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert "Model API disabled" in details


def test_plain_text_does_not_reach_a_tls_port(guarded: Guarded) -> None:
    """A caller without TLS, or with another root, is not answered."""
    with grpc.insecure_channel(guarded.grpc) as channel:
        code, _ = failure(Stub(channel, INFERENCE_SERVICE).Ping, EMPTY, timeout=5)
        assert code is grpc.StatusCode.UNAVAILABLE
    other = grpc.ssl_channel_credentials(make_keys("127.0.0.1").pem_pair().chain)
    with grpc.secure_channel(guarded.grpc, other) as channel:
        code, _ = failure(Stub(channel, INFERENCE_SERVICE).Ping, EMPTY, timeout=5)
        assert code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_messages_over_the_limit(site: Site, compression: grpc.Compression) -> None:
    """A message over the limit is refused, compressed or not; the next call on the connection is answered."""
    stub = site.inference()
    code, _ = failure(
        stub.Predictions, predictions("m", data=b"a" * 2_000_000), compression=compression, timeout=10
    )
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    answer = stub.Predictions(predictions("m", data=b"a" * 900_000), compression=compression)
    assert len(answer.prediction) > 900_000


def test_garbage_on_the_port(site: Site) -> None:
    """Bytes that are no gRPC, and messages that are no protobuf, harm nobody."""
    host, port = site.grpc.split(":")
    for raw in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 1000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff",
    ):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(raw)
    with grpc.insecure_channel(site.grpc) as channel:
        call = channel.unary_unary(f"/{INFERENCE_SERVICE}/Predictions")
        assert failure(call, b"\xff\xff\xff")[0] is grpc.StatusCode.INVALID_ARGUMENT
        assert failure(channel.unary_unary("/no.Service/Method"), b"")[0] is grpc.StatusCode.UNIMPLEMENTED
    assert site.inference().Predictions(predictions("m", data=b"x")).prediction


def test_port_that_is_taken() -> None:
    """Two servers do not share a port."""

    async def run() -> None:
        first = GrpcPort("127.0.0.1", 0, [], tls=None, max_request_bytes=1000)
        await first.start()
        second = GrpcPort("127.0.0.1", first.port, [], tls=None, max_request_bytes=1000)
        with pytest.raises(ConfigError, match="cannot listen"):
            await second.start()
        await first.stop(drain_s=0)

    asyncio.run(run())


def test_protected_mode_without_the_attested_key() -> None:
    """There is no gRPC in protected mode but under the attested key, and no management without a token."""

    async def run(settings: ServeSettings, words: str) -> None:
        pair = None if "attested" in words else make_keys("127.0.0.1").pem_pair()
        async with AsyncExitStack() as stack:
            registry = Registry(settings)
            with pytest.raises(ConfigError, match=words):
                await start_grpc(settings, registry, ModelControl(registry, None, settings), stack, tls=pair)

    asyncio.run(run(ServeSettings(grpc_port=1), "attested key"))
    asyncio.run(run(ServeSettings(grpc_management_port=1), "without a token"))


def test_tracing_is_refused() -> None:
    """Variables by which gRPC would print what callers send stop a protected start."""
    refuse_tracing({"PATH": "/bin"})
    with pytest.raises(ConfigError, match="GRPC_TRACE"):
        refuse_tracing({"GRPC_TRACE": "all"})


def test_certificate_that_is_not_there(tmp_path: Path) -> None:
    """TLS without its files is a configuration error in one line."""
    with pytest.raises(ConfigError, match="needs"):
        read_pair("", "")
    with pytest.raises(ConfigError, match="cannot read"):
        read_pair(str(tmp_path / "a"), str(tmp_path / "b"))


def test_without_the_package() -> None:
    """A server whose gRPC package is not installed says which extra brings it; without ports it starts."""
    script = (
        "import sys, asyncio; sys.modules['grpc'] = None\n"
        "from contextlib import AsyncExitStack\n"
        "from cloister.errors import MissingDependencyError\n"
        "from cloister.serve.grpc_ports import open_grpc\n"
        "from cloister.settings import ServeSettings\n"
        "async def main():\n"
        "    async with AsyncExitStack() as stack:\n"
        "        assert await open_grpc(ServeSettings(mode='open'), None, None, stack) == []\n"
        "        try:\n"
        "            await open_grpc(ServeSettings(mode='open', grpc_port=1), None, None, stack)\n"
        "        except MissingDependencyError as error:\n"
        "            print(error.hint)\n"
        "asyncio.run(main())\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "cloister[grpc]" in found.stdout
