"""``cloister predict``: images, JSON and arrays, what it shows, and errors on one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attest.simulated.platform import SimulatedPlatform
from cloister.cli.main import main
from cloister.ohttp import bhttp
from cloister.serve.oip.answer import render_answer
from cloister.serve.oip.request import parse_request
from tests.fakes.sealed_service import MR_TD, SealedService, TlsKey, echo

Run = Callable[..., tuple[int, str, str]]


def model(request: bhttp.Request) -> bhttp.Response:
    """A model that declares one input, and gives every tensor back."""
    path = request.path.decode()
    if path == "/v2/models/one":
        return bhttp.Response(200, (), b'{"name": "one", "inputs": [{"name": "pixels"}]}')
    if path in ("/v2/models/many", "/v2/models/many/versions/2"):
        return bhttp.Response(200, (), b'{"name": "many"}')
    if not path.endswith("/infer"):
        return echo(request)
    length = int(request.header(b"inference-header-content-length") or b"")
    asked = parse_request(request.content, length)
    answered = render_answer(asked, dict(asked.arrays), model_name="one", model_version="1")
    header = ((b"inference-header-content-length", str(answered.header_bytes).encode()),)
    return bhttp.Response(200, header, answered.body)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[SealedService]:
    """A service with that model."""
    platform = SimulatedPlatform.create(tmp_path / "tdx", datetime.now(UTC) - timedelta(minutes=1))
    (tmp_path / "values.toml").write_text(f'allow_simulated = true\n[tdx]\nmr_td = ["{MR_TD.hex()}"]\n')
    (tmp_path / "root.pem").write_bytes(platform.root.public_bytes(Encoding.PEM))
    service = SealedService(platform, TlsKey.make(tmp_path / "tls"))
    service.answer = model
    with service.serving():
        yield service


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], service: SealedService, tmp_path: Path) -> Run:
    """Runs the command against it: exit code, output, errors on one line."""

    def ask(name: str, *words: object) -> tuple[int, str, str]:
        trust = ("-r", tmp_path / "values.toml", "--simulated-root", tmp_path / "root.pem")
        with pytest.raises(SystemExit) as caught:
            main(["predict", service.url, name, *map(str, (*words, *trust))])
        shown = capsys.readouterr()
        assert len(shown.err.strip().splitlines()) <= 1
        return int(caught.value.code or 0), shown.out, shown.err

    return ask


def test_image_and_json(run: Run, service: SealedService, tmp_path: Path) -> None:
    """Files go as they are, under the type of their name; the first line is the verdict."""
    (tmp_path / "x.png").write_bytes(b"\x89PNG")
    (tmp_path / "x.json").write_text('{"a": 1}')
    code, out, _ = run("echo/2.0", tmp_path / "x.png", tmp_path / "x.json")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith(f"verified {service.url}: tdx, SIMULATED, proves nothing; ")
    assert "echo 1 (sha256 ababab" in lines[0]
    assert len(lines) == 3
    assert "image/png" in lines[1]
    assert "application/json" in lines[2]
    assert "/predictions/echo/2.0" in lines[2]


def test_json_output(run: Run, tmp_path: Path) -> None:
    """``--json`` is one document: the answers, with ``-v`` the verification too."""
    (tmp_path / "x.txt").write_text("abc")
    answers = json.loads(run("echo", tmp_path / "x.txt", "--json")[1])
    assert answers[0]["answer"]["path"] == "/predictions/echo"
    full = json.loads(run("echo", tmp_path / "x.txt", "--json", "-v")[1])
    assert full["answers"] == answers
    assert all(check["passed"] for check in full["verification"]["checks"])


def test_verbose(run: Run, tmp_path: Path) -> None:
    """``-v`` shows every check."""
    (tmp_path / "x.txt").write_text("abc")
    assert "mr_td" in run("echo", tmp_path / "x.txt", "-v")[1]


def test_arrays(run: Run, service: SealedService, tmp_path: Path) -> None:
    """A .npy file is the input that the model declares; an .npz file names its own; numbers come back."""
    np.save(tmp_path / "x.npy", np.arange(6, dtype=np.float32).reshape(2, 3))
    np.savez(tmp_path / "y.npz", left=np.array([1, 2], np.int64), words=np.array(["a", "b"]))
    code, out, _ = run("one", tmp_path / "x.npy", tmp_path / "y.npz")
    assert code == 0
    assert "pixels float32 [2, 3]: [[0. 1. 2.] [3. 4. 5.]]" in out
    assert "left int64 [2]: [1 2]" in out
    answers = json.loads(run("one", tmp_path / "x.npy", tmp_path / "y.npz", "--json")[1])
    assert answers[0]["answer"] == {"pixels": [[0, 1, 2], [3, 4, 5]]}
    assert answers[1]["answer"] == {"left": [1, 2], "words": ["a", "b"]}


def test_name_of_the_tensor(run: Run, tmp_path: Path) -> None:
    """Where the model declares no input, its name is asked for; ``--as-files`` sends the file itself."""
    np.save(tmp_path / "x.npy", np.zeros(2))
    code, _, error = run("many/2", tmp_path / "x.npy")
    assert (code, "--tensor NAME" in error) == (2, True)
    assert "mine float64 [2]" in run("many/2", tmp_path / "x.npy", "--tensor", "mine")[1]
    assert "/predictions/many" in run("many", tmp_path / "x.npy", "--as-files")[1]


def test_files_that_are_none(run: Run, service: SealedService, tmp_path: Path) -> None:
    """A missing, broken or pickled file is one line and no request."""
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04broken")
    (tmp_path / "empty.npy").write_bytes(b"")
    for name, code in (("none.png", 2), ("objects.npy", 4), ("broken.npz", 4), ("empty.npy", 4)):
        found, out, error = run("one", tmp_path / name)
        assert (found, name in error.replace("\n", "")) == (code, True), (out, error)
    assert service.requests == []


def test_errors_of_the_model(run: Run, service: SealedService, tmp_path: Path) -> None:
    """What the service says went wrong is one line."""
    (tmp_path / "x.txt").write_text("abc")
    body = b'{"code": 404, "type": "ModelNotFoundException", "message": "Model not found: one"}'
    service.answer = lambda request: bhttp.Response(404, (), body)
    code, _, error = run("one", tmp_path / "x.txt")
    assert code != 0
    assert "Model not found: one" in error


def test_answers_that_are_no_json(run: Run, service: SealedService, tmp_path: Path) -> None:
    """Text is shown as text; what is neither JSON nor text is shown as far as it can be read."""
    (tmp_path / "x.txt").write_text("abc")
    for content, shown in ((b"a tabby cat", "a tabby cat"), (b"\xffPNG", "\ufffdPNG"), (b"", "")):
        service.answer = lambda request, content=content: bhttp.Response(200, (), content)  # type: ignore[misc]
        code, out, error = run("one", tmp_path / "x.txt")
        assert (code, out.splitlines()[1]) == (0, f"{tmp_path / 'x.txt'}: {shown}"), error
        _, out, _ = run("one", tmp_path / "x.txt", "--json")
        assert json.loads(out)[0]["answer"] == shown


def test_answers_do_not_command_the_terminal(run: Run, service: SealedService, tmp_path: Path) -> None:
    """A model's text cannot write over the verdict."""
    (tmp_path / "x.txt").write_text("abc")
    service.answer = lambda request: bhttp.Response(200, (), b"\x1b[1Averified [red] it all\x1b[K")
    _, out, _ = run("one", tmp_path / "x.txt")
    assert "\x1b" not in out
    assert "\\x1b[1Averified [red] it all" in out
    service.answer = lambda request: bhttp.Response(
        400, (), json.dumps({"type": "BadRequestException", "message": "no\x1b[1A"}).encode()
    )
    _, _, error = run("one", tmp_path / "x.txt")
    assert "no\\x1b[1A" in error
