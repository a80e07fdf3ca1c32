"""Is it genuine? One explicit table of schemes, and the function that looks a scheme up in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from cryptography import x509

from cloister.attest.azure import snp as azure_snp
from cloister.attest.azure import tdx as azure_tdx
from cloister.attest.dcap import sgx, tdx
from cloister.attest.model import Claims, Endorsements
from cloister.attest.nitro import verify as nitro
from cloister.attest.nvidia import verify as nvidia
from cloister.attest.scheme import Scheme
from cloister.attest.snp import claims as snp
from cloister.attest.tpm import verify as tpm
from cloister.errors import ConfigError, MalformedInput

SCHEMES: dict[str, Scheme] = {
    "tdx": tdx.SCHEME,
    "sgx": sgx.SCHEME,
    "sev-snp": snp.SCHEME,
    "nitro": nitro.SCHEME,
    "nvidia": nvidia.SCHEME,
    "tpm": tpm.SCHEME,
    "az-snp-vtpm": azure_snp.SCHEME,
    "az-tdx-vtpm": azure_tdx.SCHEME,
}


def verify_evidence(
    scheme: str,
    evidence: bytes,
    endorsements: Endorsements | Mapping[str, Any] | None,
    now: datetime,
    *,
    roots: Sequence[x509.Certificate] | None = None,
) -> Claims:
    """Establish that ``evidence`` was made by the hardware that it names, and return what it says.

    It does not say that this is acceptable (``appraise`` does), nor what ``report_data`` stands for
    (``check_binding`` does).

    Args:
        scheme: key of ``SCHEMES``.
        endorsements: the vendor's collateral, as its class or in the JSON form that the class's
            ``from_mapping`` takes; None for evidence that brings its own.
        now: aware time; every validity is checked against it.
        roots: the only roots to trust; None means the vendor's own, pinned by their keys. Claims that end in
            any other root have ``simulated`` set.
    Raises:
        MalformedInput: unknown scheme, or bytes without the declared form.
        VerificationError: not genuine; its subclass says why.
    """
    if now.tzinfo is None:
        raise ConfigError("verify_evidence needs an aware time, found a naive one", hint="datetime.now(UTC)")
    row = find_scheme(scheme)
    if isinstance(endorsements, Mapping):
        endorsements = row.parse_endorsements(endorsements)
    return row.verify(bytes(evidence), endorsements, now, roots)


def parse_endorsements(scheme: str, mapping: Mapping[str, Any]) -> Endorsements:
    """Endorsements of ``scheme`` from their JSON form.

    Raises:
        MalformedInput: unknown scheme, or not the form that its vendor defines.
    """
    return find_scheme(scheme).parse_endorsements(mapping)


def vendor_roots(scheme: str) -> tuple[x509.Certificate, ...]:
    """The vendor's own roots: to be given as ``roots`` together with others."""
    return find_scheme(scheme).vendor_roots()


def find_scheme(name: str) -> Scheme:
    """The row of the table called ``name``; MalformedInput if there is none."""
    scheme = SCHEMES.get(name)
    if scheme is None:
        raise MalformedInput(f"unknown evidence scheme {name[:40]!r}, known are {', '.join(SCHEMES)}")
    return scheme
