"""The public interface, as a user's type checker sees it. Not run: `make lint` checks it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

import cloister.torch
from cloister import Client
from cloister.attest import AttestationResult, Claims, ReferenceValues, appraise, verify_evidence
from cloister.attest.dcap import DcapEndorsements, TdxClaims
from cloister.crypto.keys import SecretKey
from cloister.errors import CloisterError, PolicyDenied
from cloister.kbs.cache.client import CacheClient
from cloister.seal import SealedHeader
from cloister.seal.reader import open_sealed
from cloister.seal.signing import TrustedSigners


def judge(quote: bytes, collateral: dict[str, str], root: x509.Certificate) -> AttestationResult:
    now = datetime.now(UTC)
    claims: Claims = verify_evidence(
        "tdx", quote, DcapEndorsements.from_mapping(collateral), now, roots=[root]
    )
    if isinstance(claims, TdxClaims):
        measurement: bytes = claims.mr_td
        assert len(measurement) == 48
    references: ReferenceValues = ReferenceValues.from_toml(Path("reference.toml"))
    return appraise(claims, references, now)


def ask(url: str, references: ReferenceValues) -> object:
    try:
        with Client(url, reference_values=references) as client:
            return client.predict("digits", b"png").json()
    except PolicyDenied as denied:
        reasons: tuple[str, ...] = denied.reasons
        return reasons
    except CloisterError as error:
        hint: str = error.hint
        return hint


def checkpoint(state: dict[str, object], path: Path, keys: CacheClient) -> object:
    header: SealedHeader = cloister.torch.save(state, path, key="kbs:///models/dek/net", model_id="net")
    assert header.key_version > 0
    return cloister.torch.load(path, model_id="net", keys=keys)


def read(container: Path, key: SecretKey, signers: Path, buffer: bytearray) -> int | None:
    with open_sealed(container, key=key, trusted=TrustedSigners.from_file(signers)) as sealed:
        return sealed.readinto(buffer)
