"""The examples of docs/serving.md on the Open Inference Protocol and gRPC do what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.processes.server import Server, free_port, pack

PAGE = Path(__file__).resolve().parents[3] / "docs" / "serving.md"
LENGTH = "def handle(data, context):\n    return [str(len(row['data'])) for row in data or []]\n"


def examples() -> list[str]:
    """The Python blocks of the section, in their order."""
    _, _, rest = PAGE.read_text().partition("## Open Inference Protocol and gRPC\n")
    return re.findall(r"^```python\n(.*?)^```", rest.partition("\n## ")[0], re.MULTILINE | re.DOTALL)


def test_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both clients print what the handler makes of their input."""
    infer, handler, predict = examples()
    store = tmp_path / "store"
    store.mkdir()
    pack(tmp_path, "doubler", handler).rename(store / "doubler.mar")
    pack(tmp_path, "length", LENGTH).rename(store / "length.mar")
    http, grpc = free_port(), free_port()
    flags = {
        "serve.mode": "open",
        "serve.model_store": str(store),
        "serve.http_port": http,
        "serve.grpc_port": grpc,
    }
    with Server(flags) as server:
        server.wait_ready()
        for example in (infer, predict):
            ported = example.replace("127.0.0.1:8080", f"127.0.0.1:{http}")
            names: dict[str, object] = {}
            exec(ported.replace("127.0.0.1:7070", f"127.0.0.1:{grpc}"), names)
            for name in ("client", "channel"):
                if name in names:
                    names[name].close()  # type: ignore[attr-defined]
        assert server.stop() == 0
    assert capsys.readouterr().out == "[[2. 4.]\n [6. 8.]]\nb'10'\n"
