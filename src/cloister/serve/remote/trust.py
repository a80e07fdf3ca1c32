"""From settings to what a side proves and demands: files are read once, and their content is measured.

The operator, whom nobody trusts, writes the settings. A caller that pins a frontend's ``settings-digest`` has
to know whom that frontend takes requests to, so the digest covers the reference values, not a file name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import rfc8785
from cryptography import x509

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.binding import report_data_for
from cloister.attest.collateral.obtain import get_endorsements, make_sources
from cloister.attest.model import Attester, Endorsements
from cloister.attest.verifier import find_scheme, verify_evidence
from cloister.crypto.certificates import UNREADABLE
from cloister.errors import ConfigError
from cloister.serve.remote.proof import MIN_TOKEN_BYTES, Credentials, Demands
from cloister.serve.remote.same import same_as
from cloister.settings import CollateralSettings, ServeSettings, Settings, settings_digest


def with_contents(settings: Settings) -> Settings:
    """The settings with the text of the files that say who may join in place of their names.

    Raises:
        ConfigError: one of them cannot be read, or is empty.
    """
    serve, worker = settings.serve, settings.worker
    return msgspec.structs.replace(
        settings,
        serve=msgspec.structs.replace(
            serve,
            worker_reference_values=_text(serve.worker_reference_values, "serve.worker_reference_values"),
            worker_simulated_root=_text(serve.worker_simulated_root, "serve.worker_simulated_root"),
        ),
        worker=msgspec.structs.replace(
            worker,
            reference_values=_text(worker.reference_values, "worker.reference_values"),
            simulated_root=_text(worker.simulated_root, "worker.simulated_root"),
        ),
    )


def host_digest(settings: Settings) -> bytes:
    """SHA-384 (48 bytes) of the canonical JSON of [attest], [serve], [worker]: a host's ``mr_config_id``."""
    sections = ("attest", "serve", "worker")
    document = {name: msgspec.to_builtins(getattr(settings, name)) for name in sections}
    return hashlib.sha384(rfc8785.dumps(document)).digest()


def confinement(serve: ServeSettings) -> str:
    """The settings that both sides must have alike, as canonical JSON: mode and what confines handlers."""
    values: dict[str, Any] = msgspec.to_builtins(serve)
    alike = {name: value for name, value in values.items() if name == "mode" or name.startswith("sandbox")}
    return rfc8785.dumps(alike).decode()


def frontend_trust(settings: Settings, attester: Attester | None) -> tuple[Credentials, Demands]:
    """What a frontend proves to worker hosts, and demands of them; ``settings`` are ``with_contents``.

    Raises:
        ConfigError: nobody could join with these settings.
        VerificationError: this machine's own evidence does not verify.
    """
    serve = settings.serve
    token = _token(serve.worker_token, "serve.worker_token")
    own = Credentials(
        settings_digest=settings_digest(settings),
        confinement=confinement(settings.serve),
        attester=attester,
        token=token,
    )
    return own, _demands(settings, own, serve.worker_reference_values, serve.worker_simulated_root)


def host_trust(settings: Settings, attester: Attester | None) -> tuple[Credentials, Demands]:
    """What a worker host proves to its frontend, and demands of it; raises as ``frontend_trust``."""
    worker = settings.worker
    token = _token(worker.token, "worker.token")
    own = Credentials(
        settings_digest=host_digest(settings),
        confinement=confinement(settings.serve),
        attester=attester,
        token=token,
    )
    return own, _demands(settings, own, worker.reference_values, worker.simulated_root)


def _demands(settings: Settings, own: Credentials, reference_values: str, simulated_root: str) -> Demands:
    root = _certificate(simulated_root)
    obtain = _Obtainer(settings.collateral)
    accepted: ReferenceValues | None = None
    if own.attester is None:
        if not own.token:
            raise ConfigError(
                "open mode takes workers with a join token only, and none is set",
                hint="put `openssl rand -hex 32` into a file; name it in serve.worker_token and worker.token",
            )
    elif reference_values:
        accepted = ReferenceValues.from_toml(reference_values)
    else:
        accepted = _same_as_mine(own.attester, root, obtain)
    return Demands(
        mode=settings.serve.mode,
        token=own.token,
        reference_values=accepted,
        simulated_root=root,
        obtain=obtain,
        confinement=own.confinement,
    )


def _same_as_mine(attester: Attester, root: x509.Certificate | None, obtain: _Obtainer) -> ReferenceValues:
    """Verified as the other side's will be: what would be refused there is known at start here."""
    now = datetime.now(UTC)
    evidence = attester.get_evidence(report_data_for({"purpose": "own measurement"}))
    endorsements = attester.get_endorsements() or obtain(evidence.scheme, evidence.raw, None, now)
    roots = None if root is None else (*find_scheme(evidence.scheme).vendor_roots(), root)
    return same_as(verify_evidence(evidence.scheme, evidence.raw, endorsements, now, roots=roots))


class _Obtainer:
    """Looks where [collateral] says, in its order."""

    def __init__(self, settings: CollateralSettings) -> None:
        self._settings = settings

    def __call__(
        self, scheme: str, evidence: bytes, brought: Mapping[str, Any] | None, now: datetime
    ) -> Endorsements | None:
        sources = make_sources(self._settings, os.environ, brought=brought)
        return get_endorsements(scheme, evidence, sources, now)


def _text(file: str, name: str) -> str:
    if not file:
        return ""
    try:
        content = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{name}: cannot read {file}: {reason}") from error
    if not content.strip():
        raise ConfigError(f"{name}: {file} is empty")
    return content


def _token(file: str, name: str) -> bytes:
    token = _text(file, name).strip().encode()
    if token and len(token) < MIN_TOKEN_BYTES:
        raise ConfigError(
            f"{name}: {file} has {len(token)} characters, at least {MIN_TOKEN_BYTES} are needed"
        )
    return token


def _certificate(pem: str) -> x509.Certificate | None:
    if not pem:
        return None
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except UNREADABLE as error:
        raise ConfigError("the simulated root for workers is not a PEM certificate") from error
