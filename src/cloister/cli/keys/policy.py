"""``cloister keys policy show | check | set | test`` and ``cloister keys reference show | check | set``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cloister.cli.keys.access import Folder, Reach, administrator, reaches_broker, read_text
from cloister.cli.options import ConfigFile, Json, ReferenceFile, SimulatedRoot, now, trusted_roots
from cloister.cli.output import console, fields_table, say, show_json
from cloister.errors import ConfigError, MalformedInput, PolicyDenied

policy = typer.Typer(help="What decides each release: Cedar, or Rego brought from Trustee.")
reference = typer.Typer(help="Which TEEs may attest at all.")

PolicyFile = Annotated[Path, typer.Argument(help="Cedar, or Rego.")]


@policy.command("show")
@reaches_broker
def show_policy(
    reach: Reach,
    as_json: Json = False,
) -> None:
    """Print the policy that decides."""
    with reach() as admin:
        _print(admin.get_policy(), "policy", as_json)


@policy.command("check")
def check_policy(file: PolicyFile, as_json: Json = False) -> None:
    """Check that a policy is valid and speaks only of what there is."""
    from cloister.policy.release import is_rego, parse_release_policy

    text = read_text(file)
    parse_release_policy(text)
    language = "rego" if is_rego(text) else "cedar"
    say({"file": str(file), "language": language, "valid": True}, f"{file}: valid ({language})", as_json)


@policy.command("set")
@reaches_broker
def set_policy(
    reach: Reach,
    file: PolicyFile,
    as_json: Json = False,
) -> None:
    """Have another policy decide from the next request on; not where the settings pin one by a file."""
    text = read_text(file)
    with reach() as admin:
        admin.set_policy(text)
    say({"file": str(file), "set": True}, f"{file} decides from now on", as_json)


@policy.command("test")
def try_policy(
    resource: Annotated[str, typer.Option("--resource", help="kbs:///repository/type/tag asked for.")],
    evidence: Annotated[
        Path | None, typer.Option("--evidence", help="Saved evidence, as of `cloister evidence`.")
    ] = None,
    claims: Annotated[
        Path | None, typer.Option("--claims", help="JSON file of claims instead: of the audit log, say.")
    ] = None,
    policy_file: Annotated[
        Path | None, typer.Option("--policy", help="Policy to test; the broker's by default.")
    ] = None,
    reference_values: ReferenceFile = None,
    simulated_root: SimulatedRoot = None,
    scheme: Annotated[
        str | None, typer.Option("--scheme", help="The evidence is a vendor's own bytes of this scheme.")
    ] = None,
    endorsements: Annotated[
        Path | None, typer.Option("--endorsements", help="JSON file of endorsements.")
    ] = None,
    old: Annotated[bool, typer.Option("--old", help="The version is below the oldest released.")] = False,
    config: ConfigFile = None,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Say whether the policy would release a resource to a TEE, and why. Exits with 3 if not."""
    from cloister.kbs.protocol import ResourcePath
    from cloister.policy.release import ReleaseRequest, parse_release_policy

    if (evidence is None) == (claims is None):
        raise ConfigError("give either --evidence or --claims")
    if claims is not None:
        context = _claims(claims)
    else:
        assert evidence is not None
        context = _evidence(evidence, reference_values, simulated_root, scheme, endorsements, config)
    if policy_file is not None:
        text = read_text(policy_file)
    else:
        with administrator(config, folder) as admin:
            text = admin.get_policy()
    path = ResourcePath.from_uri(resource)
    request = ReleaseRequest(
        tee=context["tee"],
        context=context,
        repository=path.repository,
        type=path.type,
        tag=path.tag,
        version=path.version or 1,
        old=old,
        claims=lambda: _as_trustee(context),
    )
    decision = parse_release_policy(text).decide(request)
    facts = {
        "allowed": decision.allowed,
        "resource": resource,
        "reason": decision.reason,
        "policies": list(decision.policy_ids),
        "claims": context,
    }
    if as_json:
        show_json(facts)
    if not decision.allowed:
        raise PolicyDenied(decision.reason)
    if not as_json:
        shown = {"resource": resource, "policies": ", ".join(decision.policy_ids), "tier": context["tier"]}
        console.print(fields_table("released", shown))


@reference.command("show")
@reaches_broker
def show_reference(
    reach: Reach,
    as_json: Json = False,
) -> None:
    """Print the reference values that hold."""
    with reach() as admin:
        _print(admin.get_reference_values(), "reference_values", as_json)


@reference.command("check")
def check_reference(file: Annotated[Path, typer.Argument(help="TOML file.")], as_json: Json = False) -> None:
    """Check that reference values are valid."""
    from cloister.kbs.stored import parse_reference_values

    parsed = parse_reference_values(read_text(file))
    facts = {"file": str(file), "schemes": sorted(parsed.tables), "valid": True}
    say(facts, f"{file}: valid ({', '.join(sorted(parsed.tables)) or 'accepts nothing'})", as_json)


@reference.command("set")
@reaches_broker
def set_reference(
    reach: Reach,
    file: Annotated[Path, typer.Argument(help="TOML file.")],
    as_json: Json = False,
) -> None:
    """Have other reference values hold from the next attestation on."""
    text = read_text(file)
    with reach() as admin:
        admin.set_reference_values(text)
    say({"file": str(file), "set": True}, f"{file} holds from now on", as_json)


def _claims(file: Path) -> dict[str, Any]:
    from cloister.kbs.claims import policy_context

    try:
        found = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise MalformedInput(f"{file}: not JSON") from error
    if not isinstance(found, dict) or not isinstance(found.get("tier"), str):
        raise MalformedInput(f"{file}: not an object of claims with a tier")
    tee = found.get("tee", found.get("scheme"))
    if not isinstance(tee, str):
        raise MalformedInput(f"{file}: the claims do not say of which TEE")
    context = policy_context(found, found["tier"], tee)
    registers = {name: found[name] for name in found if name.startswith("rtmr") and name[4:].isdigit()}
    digest = {name: found[name] for name in ("init_data_digest",) if isinstance(found.get(name), str)}
    return {**registers, **context, **digest}


def _evidence(
    file: Path,
    reference_values: Path | None,
    simulated_root: Path | None,
    scheme: str | None,
    endorsements: Path | None,
    config: Path | None,
) -> dict[str, Any]:
    from cloister.attest.appraisal import ReferenceValues
    from cloister.cli.verify_file import FileOptions, verify_file
    from cloister.kbs.claims import policy_context
    from cloister.kbs.evidence import tee_of_scheme

    if reference_values is None:
        raise ConfigError("evidence is appraised first: give --reference-values")
    options = FileOptions(
        nonce=None,
        report_data=None,
        scheme=scheme,
        endorsements=endorsements,
        fetch=False,
        config=config,
        now=now(),
    )
    references = ReferenceValues.from_toml(reference_values)
    verdict = verify_file(file, options, references, trusted_roots(simulated_root))
    if verdict.denied is not None:
        raise verdict.denied
    found = verdict.result.claims
    return policy_context(found.to_mapping(), verdict.result.tier.name.lower(), tee_of_scheme(found.scheme))


def _as_trustee(context: dict[str, Any]) -> dict[str, Any]:
    from cloister.kbs.trustee import vendor_claims

    annotated = {context["tee"]: vendor_claims(context["tee"], context)}
    cpu = {"ear.status": context["tier"], "ear.veraison.annotated-evidence": annotated}
    return {"submods": {"cpu0": cpu}}


def _print(text: str, name: str, as_json: bool) -> None:
    if as_json:
        show_json({name: text})
    else:
        typer.echo(text, nl=not text.endswith("\n"))
