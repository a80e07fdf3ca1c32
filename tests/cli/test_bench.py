"""``cloister bench``: against a sealed service and a real server in open mode, each for a moment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attest.simulated.platform import SimulatedPlatform
from cloister.cli.main import main
from cloister.ohttp import bhttp
from tests.cli.test_predict import model
from tests.fakes.sealed_service import MR_TD, SealedService, TlsKey
from tests.processes.server import Server, free_port, pack
from tests.serve.sandbox.inside import sandbox_flags

SHORT = ("--duration", "0.3", "--warm-up", "0.1", "--concurrency", "3")
HANDLER = "def handle(data, context):\n    return None if data is None else [len(d['body']) for d in data]\n"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[SealedService]:
    """A protected service; what to trust is in files beside it."""
    platform = SimulatedPlatform.create(tmp_path / "tdx", datetime.now(UTC) - timedelta(minutes=1))
    (tmp_path / "values.toml").write_text(f'allow_simulated = true\n[tdx]\nmr_td = ["{MR_TD.hex()}"]\n')
    (tmp_path / "root.pem").write_bytes(platform.root.public_bytes(Encoding.PEM))
    (tmp_path / "x.txt").write_text("abc")
    service = SealedService(platform, TlsKey.make(tmp_path / "tls"))
    service.answer = model
    with service.serving():
        yield service


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    with pytest.raises(SystemExit) as caught:
        main(["bench", *map(str, words)])
    shown = capsys.readouterr()
    return int(caught.value.code or 0), shown.out, shown.err


def trust(folder: Path) -> tuple[object, ...]:
    return "-r", folder / "values.toml", "--simulated-root", folder / "root.pem"


def test_sealed(service: SealedService, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Verified once, then sealed; what the caller itself costs is said."""
    sent = ("--model", "echo/2.0", "--input", tmp_path / "x.txt", *SHORT, *trust(tmp_path))
    code, out, _ = run(capsys, service.url, *sent)
    assert code == 0, out
    assert out.startswith(f"verified {service.url}: tdx, SIMULATED, proves nothing; ")
    for words in ("requests/s", "p99", "ms to seal", "verification, once", "3 bytes each, sealed"):
        assert words in out
    assert {request.path for request in service.requests} == {b"/predictions/echo/2.0"}
    assert service.evidence_given == 1
    document = json.loads(run(capsys, service.url, *sent, "--json")[1])
    assert document["sealed"] is True
    assert document["answered"] == pytest.approx(document["throughput_per_s"] * 0.3)
    assert document["latency_ms"]["p50"] <= document["latency_ms"]["p99"]
    assert document["client"].keys() == {
        "cpu_ms_per_request", "share_of_a_core", "seal_ms", "verification_ms",
    }  # fmt: skip


def test_arrays_are_tensors(
    service: SealedService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A .npy file is the input that the model declares, unless its name is given."""
    np.save(tmp_path / "x.npy", np.zeros((1, 3), np.float32))
    words = (service.url, "-i", tmp_path / "x.npy", *SHORT, *trust(tmp_path))
    assert run(capsys, *words, "-m", "one")[0] == 0
    assert b'"name": "pixels"' in service.requests[-1].content
    code, _, error = run(capsys, *words, "-m", "many")
    assert (code, "--tensor NAME" in error) == (2, True)
    assert run(capsys, *words, "-m", "many", "--tensor", "mine")[0] == 0
    assert b'"name": "mine"' in service.requests[-1].content


def test_only_errors(service: SealedService, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are shown by their status, and the exit code says that nothing was measured."""
    service.answer = lambda _: bhttp.Response(503)
    sent = ("-m", "echo", "-i", tmp_path / "x.txt", *SHORT, *trust(tmp_path))
    code, out, error = run(capsys, service.url, *sent)
    assert code == 6
    assert "error 503" in out
    assert "no request succeeded" in error


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["-i", "x.txt"], 2, "give -r FILE, or --open"),
        (["-i", "none.txt", "--open"], 2, "no such file"),
        (["-i", "x.txt", "--open", "--model-digest", "ab" * 32], 2, "not with --open"),
        (["-i", "x.txt", "--open", "--duration", "0"], 2, "over 0"),
        (["-i", "x.txt", "--open", "--concurrency", "9999"], 2, "1 to 1024"),
    ],
)
def test_wrong_words(
    service: SealedService,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    said: str,
) -> None:
    """One line, and no request."""
    monkeypatch.chdir(tmp_path)
    found, _, error = run(capsys, service.url, "-m", "echo", *words)
    assert (found, said in error, error.count("\n")) == (code, True, 1), error
    assert service.outer == []


def test_a_service_that_does_not_verify(
    service: SealedService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is sent to it."""
    (tmp_path / "values.toml").write_text(f'allow_simulated = true\n[tdx]\nmr_td = ["{"00" * 48}"]\n')
    sent = ("-m", "echo", "-i", tmp_path / "x.txt", *SHORT, *trust(tmp_path))
    assert run(capsys, service.url, *sent)[0] == 3
    assert service.requests == []


def test_a_real_server_in_open_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its model under load; one that it does not have is nothing but errors."""
    (tmp_path / "store").mkdir()
    (tmp_path / "x.bin").write_bytes(bytes(1000))
    pack(tmp_path, "size", HANDLER).rename(tmp_path / "store" / "size.mar")
    flags = {
        "serve.mode": "open",
        "serve.http_port": free_port(),
        "serve.model_store": str(tmp_path / "store"),
        **sandbox_flags(),
    }
    with Server(flags) as server:
        server.wait_ready()
        sent = ("-i", tmp_path / "x.bin", *SHORT, "--open", "--json")
        code, out, _ = run(capsys, server.url, "-m", "size", *sent)
        document = json.loads(out)
        assert (code, document["errors"], document["sealed"]) == (0, {}, False)
        assert document["answered"] > 0
        code, out, _ = run(capsys, server.url, "-m", "absent", *sent)
        document = json.loads(out)
        assert (code, list(document["errors"]), document["answered"]) == (6, ["404"], 0)
