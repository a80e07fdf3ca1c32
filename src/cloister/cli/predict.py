"""``cloister predict``: verify the service, seal each input to it, show the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from cloister.cli.options import (
    Json,
    ModelDigests,
    ModelSigners,
    PolicyDigests,
    ReferenceFile,
    SimulatedRoot,
    trusted_roots,
)
from cloister.cli.output import console, show_json
from cloister.errors import ConfigError


def predict(
    url: Annotated[str, typer.Argument(help="Base URL of the service.")],
    model: Annotated[str, typer.Argument(help="Model name, or NAME/VERSION.")],
    inputs: Annotated[list[Path], typer.Argument(help="Files to send, one request each.")],
    reference_values: ReferenceFile = None,
    simulated_root: SimulatedRoot = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with an API key or a JSON Web Token; it travels sealed.")
    ] = None,
    model_digest: ModelDigests = None,
    model_signer: ModelSigners = None,
    policy_digest: PolicyDigests = None,
    as_json: Json = False,
) -> None:
    """Send each file as one sealed request; nothing is sent to a service that does not verify."""
    from cloister.attest.appraisal import ReferenceValues
    from cloister.client.session import Client

    if reference_values is None:
        raise ConfigError("no reference values: nothing says which TEE is acceptable", hint="give -r FILE")
    missing = [str(path) for path in inputs if not path.is_file()]
    if missing:
        raise ConfigError(f"no such file: {', '.join(missing)}")
    name, _, version = model.partition("/")
    references = ReferenceValues.from_toml(reference_values).demanding(
        model_digest or (), model_signer or (), policy_digest or ()
    )
    roots = trusted_roots(simulated_root)
    token = _read_token(token_file)
    answers: list[dict[str, Any]] = []
    with Client(url, reference_values=references, roots=roots, token=token) as client:
        for path in inputs:
            answer = client.predict(name, path, version=version or None)
            answers.append({"input": str(path), "answer": _decoded(answer)})
    if as_json:
        show_json(answers)
        return
    table = Table(
        "input", "answer", title=f"{model} at {url}, sealed to the attested key", title_justify="left"
    )
    for row in answers:
        table.add_row(row["input"], str(row["answer"]))
    console.print(table)


def _read_token(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read a token from {path}") from error
    if not token or not token.isprintable() or " " in token:
        raise ConfigError(f"{path} does not hold one token")
    return token


def _decoded(answer: Any) -> Any:
    try:
        return answer.json()
    except ValueError:
        return answer.content.decode("utf-8", errors="replace")
