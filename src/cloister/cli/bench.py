"""``cloister bench``: what a served model does under load, as its callers see it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
from cloister.cli.output import console, errors, fields_table, show_json, verdict_line
from cloister.errors import ConfigError, ServingError

if TYPE_CHECKING:
    import httpx

    from cloister.attest.service import VerifiedService
    from cloister.client.aio import AsyncOhttpTransport
    from cloister.client.load import Load, Plan
    from cloister.client.requests import Parts


def bench(
    url: Annotated[str, typer.Argument(help="Base URL of the service.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Model name, or NAME/VERSION.")],
    input_file: Annotated[Path, typer.Option("--input", "-i", help="File to send with every request.")],
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 16,
    duration: Annotated[float, typer.Option(help="Seconds that are measured.")] = 10.0,
    warm_up: Annotated[float, typer.Option(help="Seconds before that.")] = 1.0,
    plain: Annotated[
        bool, typer.Option("--open", help="The service is in open mode: requests are NOT protected.")
    ] = False,
    reference_values: ReferenceFile = None,
    simulated_root: SimulatedRoot = None,
    token_file: TokenFile = None,
    model_digest: ModelDigests = None,
    model_signer: ModelSigners = None,
    policy_digest: PolicyDigests = None,
    tensor: TensorName = "",
    as_files: AsFiles = False,
    as_json: Json = False,
) -> None:
    """Put a model under load, and show its throughput, latencies and errors.

    Requests are verified and sealed like those of `cloister predict`; --open sends plain ones to a service in
    open mode. Exit code 6 if no request succeeded.
    """
    from cloister.attest.appraisal import ReferenceValues
    from cloister.client.aio import AsyncOhttpTransport
    from cloister.client.load import Plan

    if not input_file.is_file():
        raise ConfigError(f"no such file: {input_file}")
    plan = Plan(concurrency, duration, warm_up)
    plan.check()
    transport = None
    if plain:
        demands = model_digest or model_signer or policy_digest or token_file
        if demands:
            raise ConfigError(
                "an open service proves nothing, and tokens travel sealed only: not with --open"
            )
    elif reference_values is None:
        raise ConfigError(
            "no reference values: nothing says which TEE is acceptable",
            hint="give -r FILE, or --open for a service in open mode",
        )
    else:
        references = ReferenceValues.from_toml(reference_values).demanding(
            model_digest or (), model_signer or (), policy_digest or ()
        )
        transport = AsyncOhttpTransport(url, reference_values=references, roots=trusted_roots(simulated_root))
    question = _Question(model, input_file, tensor, as_files)
    found = asyncio.run(_run(url, transport, question, plan, read_token(token_file)))
    document = {"url": url, "model": model, **found.to_mapping()}
    if as_json:
        show_json(document)
    else:
        _show(found, document)
    if not found.load.latencies_s:
        raise ServingError(
            "no request succeeded", hint="look at the errors; if there are none, raise --duration"
        )


@dataclass(frozen=True, slots=True)
class _Question:
    model: str
    path: Path
    tensor: str
    as_files: bool

    async def parts(self, http: httpx.AsyncClient) -> Parts:
        """The request; a model is asked what its input is called if nobody said."""
        from cloister.cli.inputs import ARRAY_SUFFIXES, declared_input, read_arrays
        from cloister.client.answer import Answer, raise_for_status
        from cloister.client.channel import reaching
        from cloister.client.requests import inference, metadata_path, prediction

        name, _, version = self.model.partition("/")
        if self.path.suffix.lower() not in ARRAY_SUFFIXES or self.as_files:
            return prediction(name, self.path, version or None)
        tensor = self.tensor
        if not tensor and self.path.suffix.lower() == ".npy":
            with reaching(str(http.base_url)):
                response = await http.get(metadata_path(name, version or None))
            answer = Answer(response.status_code, (), response.content)
            said = raise_for_status(answer).json()
            tensor = declared_input(said if isinstance(said, dict) else {}, name)
        return inference(name, read_arrays(self.path, lambda: tensor), version or None)


@dataclass(frozen=True, slots=True)
class _Found:
    load: Load
    sent_bytes: int
    service: VerifiedService | None
    verify_s: float
    seal_s: float

    def to_mapping(self) -> dict[str, Any]:
        document: dict[str, Any] = {"sealed": self.service is not None, "sent_bytes": self.sent_bytes}
        document |= self.load.to_mapping()
        if self.service is not None:
            own = {"seal_ms": self.seal_s * 1e3, "verification_ms": self.verify_s * 1e3}
            document["client"] = {**document["client"], **own}
        return document


async def _run(
    url: str, transport: AsyncOhttpTransport | None, question: _Question, plan: Plan, token: str
) -> _Found:
    import httpx

    from cloister.client.channel import LIMITS, check_url
    from cloister.client.load import run_load, time_sealing
    from cloister.client.requests import own_headers

    base = check_url(url)
    async with httpx.AsyncClient(
        base_url=base, transport=transport, headers=own_headers(token), limits=LIMITS, timeout=60.0
    ) as http:
        before = time.perf_counter()
        service = None if transport is None else await transport.verify()
        verify_s = time.perf_counter() - before
        asked = await question.parts(http)
        seal_s = 0.0
        if service is not None:
            seal_s = time_sealing(service.identity.ohttp_key_config, base, asked)
        load = await run_load(http, asked, plan)
    return _Found(load, len(asked[1]), service, verify_s, seal_s)


def _show(found: _Found, document: dict[str, Any]) -> None:
    from cloister.client.load import BUSY

    load, client = found.load, document["client"]
    if found.service is not None:
        console.print(verdict_line(found.service, document["url"]), soft_wrap=True)
    rows: dict[str, Any] = {"throughput": f"{load.throughput_per_s:,.1f} requests/s"}
    for name, value in (document["latency_ms"] or {}).items():
        rows[name] = f"{value:.2f} ms"
    rows["answered"] = f"{document['answered']:,} in {load.plan.duration_s:g} s"
    for kind, count in document["errors"].items():
        rows[f"error {kind}"] = f"{count:,}"
    if client["cpu_ms_per_request"] is not None:
        sealed = "" if found.service is None else f", {client['seal_ms']:.2f} ms to seal"
        rows["caller's own time"] = f"{client['cpu_ms_per_request']:.2f} ms of processor a request{sealed}"
    if found.service is not None:
        rows["verification, once"] = f"{client['verification_ms']:.1f} ms"
    how = "sealed" if found.service is not None else "NOT protected"
    title = f"{document['model']}, {load.plan.concurrency} at once, {found.sent_bytes:,} bytes each, {how}"
    console.print(fields_table(title, rows))
    if load.caller_share > BUSY:
        errors.print(
            f"this process was busy for {load.caller_share:.0%} of the time: these may be its limits, not "
            "the service's; run several at once, on another machine",
            style="yellow",
        )
