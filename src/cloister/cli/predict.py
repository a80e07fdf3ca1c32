"""``cloister predict``: verify the service, seal each input to it, show the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cloister.cli.inputs import Question
from cloister.cli.options import (
    AsFiles,
    Json,
    ModelDigests,
    ModelSigners,
    PolicyDigests,
    ReferenceFile,
    SimulatedRoot,
    TensorName,
    TokenFile,
    read_token,
    trusted_roots,
)
from cloister.cli.output import console, show_json, verdict_line, verdict_table
from cloister.errors import ConfigError


def predict(
    url: Annotated[str, typer.Argument(help="Base URL of the service.")],
    model: Annotated[str, typer.Argument(help="Model name, or NAME/VERSION.")],
    inputs: Annotated[list[Path], typer.Argument(help="Files to send, one request each.")],
    reference_values: ReferenceFile = None,
    simulated_root: SimulatedRoot = None,
    token_file: TokenFile = None,
    model_digest: ModelDigests = None,
    model_signer: ModelSigners = None,
    policy_digest: PolicyDigests = None,
    tensor: TensorName = "",
    as_files: AsFiles = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show every check of the verification.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Send each file as one sealed request; nothing is sent to a service that does not verify.

    Images, JSON and other files go to the model as they are, under the content type of their name. The arrays
    of .npy and .npz files go as tensors (Open Inference Protocol), and tensors come back.
    """
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
    token = read_token(token_file)
    question = Question(name, version or None, tensor=tensor, as_files=as_files)
    answers: list[dict[str, Any]] = []
    with Client(url, reference_values=references, roots=roots, token=token) as client:
        service = client.verify()
        if not as_json:
            console.print(verdict_line(service, url), soft_wrap=True)
            if verbose:
                console.print(verdict_table(service.result, "every check"))
        for path in inputs:
            value, text = question.ask(client, path)
            answers.append({"input": str(path), "answer": value})
            if not as_json:
                console.print(f"{path}: {text}", soft_wrap=True)
    if as_json:
        verification = {"verification": service.result.to_mapping(), "answers": answers}
        show_json(verification if verbose else answers)
