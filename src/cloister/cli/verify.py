"""``cloister verify``: is this genuine, and is it the one that I accept?"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from cloister.cli.options import (
    ConfigFile,
    Json,
    ModelDigests,
    ModelSigners,
    PolicyDigests,
    ReferenceFile,
    SimulatedRoot,
    moment,
    trusted_roots,
    unhex,
)
from cloister.cli.output import claims_table, console, errors, fields_table, show_json, verdict_table
from cloister.errors import ConfigError, MalformedInput, VerificationError

if TYPE_CHECKING:
    from cloister.attest.appraisal import ReferenceValues
    from cloister.attest.model import AttestationResult
    from cloister.attest.service import ServiceIdentity
    from cloister.cli.verify_file import Verdict

NOT_APPRAISED = "genuine, but NOT APPRAISED: nothing says that it is acceptable"


def verify(
    target: Annotated[
        str,
        typer.Argument(
            help="URL of a service (https://host:8443), or a file: of `cloister evidence`, a service's"
            " bundle, or with --scheme a vendor's own bytes."
        ),
    ],
    reference_values: ReferenceFile = None,
    simulated_root: SimulatedRoot = None,
    verify_only: Annotated[
        bool, typer.Option("--verify-only", help="Without reference values: is it genuine? Accepts nothing.")
    ] = False,
    nonce: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="File: the nonce that was asked with; a bundle needs it."),
    ] = None,
    report_data: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="File: what it must bind, at most 64 bytes, zero-padded."),
    ] = None,
    scheme: Annotated[
        str | None, typer.Option(help="File of vendor bytes: tdx, sgx, sev-snp, tpm, nitro, nvidia, ...")
    ] = None,
    endorsements: Annotated[
        Path | None,
        typer.Option(help="File: JSON of the vendor's collateral, not what the file brings."),
    ] = None,
    fetch: Annotated[
        bool,
        typer.Option("--fetch", help="File: obtain endorsements as the settings' table `collateral` says."),
    ] = False,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="File: verify as of this RFC 3339 time, not now.")
    ] = None,
    model_digest: ModelDigests = None,
    model_signer: ModelSigners = None,
    policy_digest: PolicyDigests = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Verify evidence of a service or in a file, appraise it, and show the verdict."""
    references = _references(reference_values, verify_only=verify_only).demanding(
        model_digest or (), model_signer or (), policy_digest or ()
    )
    roots = trusted_roots(simulated_root)
    if target.startswith(("https://", "http://")):
        if any((nonce, report_data, scheme, endorsements, fetch, at)):
            raise ConfigError(
                "--nonce, --report-data, --scheme, --endorsements, --fetch and --at are for files"
            )
        _verify_url(target, references, roots, verify_only=verify_only, as_json=as_json)
        return
    from cloister.cli.verify_file import FileOptions, verify_file

    options = FileOptions(
        nonce=None if nonce is None else unhex(nonce, "--nonce", 64),
        report_data=None if report_data is None else unhex(report_data, "--report-data", 64),
        scheme=scheme,
        endorsements=endorsements,
        fetch=fetch,
        config=config,
        now=moment(at),
    )
    try:
        verdict = verify_file(Path(target), options, references, roots)
    except (MalformedInput, VerificationError) as error:
        if as_json:
            show_json({"accepted": False, "error": type(error).__name__, "message": error.message})
        raise
    _show(verdict, target, verify_only=verify_only, as_json=as_json)
    if verdict.denied is not None and not verify_only:
        raise verdict.denied


def _references(file: Path | None, *, verify_only: bool) -> ReferenceValues:
    from cloister.attest.appraisal import ReferenceValues

    if verify_only:
        return ReferenceValues.from_mapping({})  # denies everything, after it has been found genuine
    if file is None:
        raise ConfigError(
            "no reference values: nothing says which TEE is acceptable",
            hint="give -r FILE, or --verify-only to learn only whether it is genuine",
        )
    return ReferenceValues.from_toml(file)


def _verify_url(
    url: str, references: ReferenceValues, roots: Any, *, verify_only: bool, as_json: bool
) -> None:
    from cloister.attest.appraisal import AppraisalDenied
    from cloister.client.session import Client

    with Client(url, reference_values=references, roots=roots) as client:
        try:
            service = client.verify()
        except AppraisalDenied as denied:
            if verify_only:
                _show_unappraised(denied.result, url, {}, as_json=as_json)
                return
            if as_json:
                show_json({"accepted": False, **denied.result.to_mapping()})
            else:
                console.print(verdict_table(denied.result, f"{url}: refused"))
            raise
    if as_json:
        show_json({"accepted": True, **service.result.to_mapping(), "identity": bound_json(service.identity)})
        return
    console.print(verdict_table(service.result, f"{url}: accepted{_simulated(service.result)}"))
    console.print(fields_table("what the evidence binds", bound_facts(service.identity)))


def _show(verdict: Verdict, target: str, *, verify_only: bool, as_json: bool) -> None:
    result, identity = verdict.result, verdict.identity
    if verify_only:
        _show_unappraised(result, target, verdict.bound, as_json=as_json)
        return
    accepted = verdict.denied is None
    if as_json:
        more = {} if identity is None else {"identity": bound_json(identity)}
        show_json({"accepted": accepted, **result.to_mapping(), "bound": verdict.bound, **more})
        return
    word = f"accepted{_simulated(result)}" if accepted else "refused"
    console.print(verdict_table(result, f"{target}: {word}"))
    if accepted:
        bound = verdict.bound if identity is None else bound_facts(identity)
        console.print(fields_table("what the evidence binds", bound))


def _show_unappraised(
    result: AttestationResult, target: str, bound: dict[str, str], *, as_json: bool
) -> None:
    if as_json:
        found = {"simulated": result.simulated, "claims": result.claims.to_mapping(), "bound": bound}
        show_json({"accepted": None, "appraised": False, **found})
    else:
        console.print(claims_table(result.claims, f"{target}: {NOT_APPRAISED}{_simulated(result)}"))
        if bound:
            console.print(fields_table("what the evidence binds", bound))
    errors.print(Text.assemble(("warning: ", "bold red"), NOT_APPRAISED))


def _simulated(result: AttestationResult) -> str:
    return " (SIMULATED: proves nothing)" if result.simulated else ""


def bound_json(identity: ServiceIdentity) -> dict[str, Any]:
    """What a verified service's evidence speaks for, for programs."""
    return {
        "tls-key-sha256": base64.b64encode(hashlib.sha256(identity.tls_spki).digest()).decode(),
        "ohttp-key-config": base64.b64encode(identity.ohttp_key_config).decode(),
        "settings-digest": identity.settings_digest.hex(),
        "policy-digest": identity.policy_digest.hex(),
        "callers-digest": identity.callers_digest.hex(),
        "models": [asdict(model) for model in identity.models],
    }


def bound_facts(identity: ServiceIdentity) -> dict[str, str]:
    """What a verified service's evidence speaks for, as short text."""
    models = ", ".join(
        f"{model.name} {model.version} (sha256 {model.container_digest[:16]}…, sandbox {model.sandbox})"
        for model in identity.models
    )
    return {
        "nonce": "ours, fresh",
        "TLS key": f"sha256 {hashlib.sha256(identity.tls_spki).hexdigest()[:32]}…",
        "OHTTP key": f"sha256 {hashlib.sha256(identity.ohttp_key_config).hexdigest()[:32]}…",
        "settings": f"sha384 {identity.settings_digest.hex()[:32]}…",
        "access policy": f"sha384 {identity.policy_digest.hex()}",
        "known callers": f"sha384 {identity.callers_digest.hex()[:32]}…",
        "models": models or "none",
    }
