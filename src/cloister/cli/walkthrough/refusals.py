"""What must not work: a changed container or server, a caller who expects another, an unsealed request."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
from rich.markup import escape

from cloister.cli.walkthrough.narrator import DemoFailed, Narrator
from cloister.cli.walkthrough.processes import command, run_to_end
from cloister.errors import VerificationError


def refuse_flipped_container(narrator: Narrator) -> None:
    """One bit of the stored container is flipped: the server does not start."""
    stage = narrator.stage
    shutil.copytree(stage.path("store"), stage.path("store-flipped"))
    container = next(stage.path("store-flipped").rglob("*.sealed"))
    content = bytearray(container.read_bytes())
    content[len(content) // 2] ^= 1
    container.write_bytes(content)
    arguments = command("serve", "-c", stage.path("server-flipped.toml"))
    code, reason = run_to_end(arguments, stage.log("server-flipped"))
    _tell(narrator, "a container with one flipped bit", code, reason)


def refuse_changed_code(narrator: Narrator) -> None:
    """One byte of the server's code is added: its measurement differs, and the broker keeps the key."""
    stage = narrator.stage
    package = stage.path("changed") / "cloister"
    source = Path(__file__).resolve().parents[2]
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__"))
    with (package / "serve" / "worker.py").open("a") as changed:
        changed.write("#")
    code, reason = run_to_end(
        command("serve", "-c", stage.path("server-changed-code.toml")),
        stage.log("server-changed-code"),
        package_parent=stage.path("changed"),
    )
    _tell(narrator, "a server whose code was changed by one byte", code, reason)


def refuse_other_reference(narrator: Narrator) -> None:
    """A caller expects another measurement: it refuses, and the server sees no request."""
    stage = narrator.stage
    before = _predictions(stage.url)
    image = next((stage.plaintext / "images").iterdir())
    arguments = command("predict", stage.url, "digits", image, *narrator.trust("other-reference.toml"))
    code, reason = run_to_end(arguments, stage.log("predict-other-reference"))
    _tell(narrator, "a caller who expects another measurement", code, reason)
    if not before or _predictions(stage.url) != before:
        raise DemoFailed("the caller refused the server, and yet a request arrived")
    narrator.done(f"and nothing was sent: the server has still seen {before:.0f} predictions")


def refuse_unsealed(narrator: Narrator) -> None:
    """A request that is not sealed: the server's own policy refuses it, although the connection is TLS."""
    stage = narrator.stage
    answer = httpx.post(stage.url + "/predictions/digits", content=b"", verify=False, timeout=10)  # noqa: S501
    if answer.status_code != httpx.codes.FORBIDDEN:
        raise DemoFailed(f"an unsealed request was answered with HTTP status {answer.status_code}")
    narrator.say("  [bold]a request that is not sealed[/bold] (requests.cedar permits sealed ones only)")
    narrator.say(f"    [red]{escape(answer.json()['message'])}[/red]")


def read_metrics(url: str) -> str:
    """The server's Prometheus metrics; the certificate is not the question here."""
    return httpx.get(url + "/metrics", verify=False, timeout=10).text  # noqa: S501


def _predictions(url: str) -> float:
    lines = [line for line in read_metrics(url).splitlines() if line.startswith("cloister_requests_total")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def _tell(narrator: Narrator, what: str, code: int, reason: str) -> None:
    if code != VerificationError.exit_code:
        raise DemoFailed(f"{what} was not refused (exit code {code}): {reason}")
    narrator.say(f"  [bold]{what}[/bold]")
    narrator.say(f"    [red]{escape(reason)}[/red]")
