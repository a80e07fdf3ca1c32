"""One real server with gRPC for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests.processes.server import Server, free_port, pack
from tests.serve.grpc.stubs import INFERENCE_SERVICE, MANAGEMENT_SERVICE, Stub

HANDLER = """
import time
from pathlib import Path

def handle(data, context):
    if data is None:
        return None
    if context.get_request_header(0, "describe") == "True":
        return [{"says": "hello"}] * len(data)
    return [answer(index, row, context) for index, row in enumerate(data)]

def answer(index, row, context):
    request = row.get("body")
    if hasattr(request, "arrays"):
        if "sleep" in request.parameters:
            time.sleep(request.parameters["sleep"])
        if "fail" in request.parameters:
            raise ValueError("not like this")
        return {name: array for name, array in request.arrays.items()}
    command = bytes(row.get("data", b"")).decode("latin-1")
    if command == "stream":
        for number in range(3):
            context.send_part(index, f"part {number};")
        return "end"
    if command == "sequence":
        keys = ("ts_request_sequence_id", "ts_request_sequence_start", "ts_request_sequence_end")
        return {key: context.get_request_header(index, key) for key in keys}
    if command == "sleep":
        time.sleep(0.6)
    if command == "note":
        with Path(bytes(row["file"]).decode()).open("a") as file:
            file.write("x")
        time.sleep(0.3)
    if command == "fail":
        raise ValueError("not like this")
    if command == "break":
        raise RuntimeError("of the model")
    if command == "teapot":
        context.set_response_status(418, "teapot", index)
        return "short and stout"
    return {name: [type(value).__name__, bytes(value).decode("latin-1")] for name, value in row.items()}
"""


@dataclass
class Site:
    """A running server and its ports."""

    server: Server
    http: str
    grpc: str
    grpc_management: str
    store: Path

    def inference(self) -> Stub:
        return Stub(grpc.insecure_channel(self.grpc), INFERENCE_SERVICE)

    def management(self) -> Stub:
        return Stub(grpc.insecure_channel(self.grpc_management), MANAGEMENT_SERVICE)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An open server with one model, ``m``, in version 1.0, and archives of others in its store."""
    folder = tmp_path_factory.mktemp("grpc")
    store = folder / "store"
    store.mkdir()
    pack(folder, "m", HANDLER).rename(store / "m.mar")
    pack(folder, "other", HANDLER).rename(store / "other.mar")
    pack(folder, "other", HANDLER, version="2.0").rename(store / "other-2.mar")
    ports = free_port(), free_port(), free_port()
    flags = {
        "serve.mode": "open",
        "serve.model_store": str(store),
        "serve.models": ["m"],
        "serve.http_port": ports[0],
        "serve.grpc_port": ports[1],
        "serve.grpc_management_port": ports[2],
        "serve.model_api": True,
        "serve.max_request_bytes": 1_000_000,
    }
    with Server(flags) as server:
        server.wait_ready()
        addresses = [f"127.0.0.1:{port}" for port in ports]
        yield Site(server, *addresses, store)
        assert server.stop() == 0
