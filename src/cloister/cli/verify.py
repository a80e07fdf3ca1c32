"""``cloister verify``: is this service genuine, and is it the one that I accept?"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.options import Json, ReferenceFile, SimulatedRoot, trusted_roots
from cloister.cli.output import console, fields_table, show_json, verdict_table
from cloister.errors import ConfigError

if TYPE_CHECKING:
    from cloister.attest.service import ServiceIdentity


def verify(
    url: Annotated[str, typer.Argument(help="Base URL of the service, for example https://host:8443")],
    reference_values: ReferenceFile = None,
    simulated_root: SimulatedRoot = None,
    as_json: Json = False,
) -> None:
    """Fetch evidence with a fresh nonce, verify it, appraise it, and show the verdict."""
    from cloister.attest.appraisal import AppraisalDenied, ReferenceValues
    from cloister.client.session import Client

    if reference_values is None:
        raise ConfigError("no reference values: nothing says which TEE is acceptable", hint="give -r FILE")
    references = ReferenceValues.from_toml(reference_values)
    with Client(url, reference_values=references, roots=trusted_roots(simulated_root)) as client:
        try:
            service = client.verify()
        except AppraisalDenied as denied:
            if as_json:
                show_json({"accepted": False, **denied.result.to_mapping()})
            else:
                console.print(verdict_table(denied.result, f"{url}: refused"))
            raise
    if as_json:
        identity = service.identity
        bound = {
            "tls-key-sha256": base64.b64encode(hashlib.sha256(identity.tls_spki).digest()).decode(),
            "ohttp-key-config": base64.b64encode(identity.ohttp_key_config).decode(),
            "settings-digest": identity.settings_digest.hex(),
            "models": [asdict(model) for model in identity.models],
        }
        show_json({"accepted": True, **service.result.to_mapping(), "identity": bound})
        return
    title = f"{url}: accepted" + (" (SIMULATED: proves nothing)" if service.result.simulated else "")
    console.print(verdict_table(service.result, title))
    console.print(fields_table("what the evidence binds", bound_facts(service.identity)))


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
        "models": models or "none",
    }
