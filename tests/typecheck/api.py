"""The public interface, as a user's type checker sees it. Not run: `make lint` checks it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from cryptography import x509
from numpy.typing import NDArray

import cloister.torch
from cloister import AsyncClient, Client, async_transport, transport
from cloister.attest import AttestationResult, Claims, ReferenceValues, appraise, verify_evidence
from cloister.attest.dcap import DcapEndorsements, TdxClaims
from cloister.client.answer import Answer
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


def infer(url: str, references: ReferenceValues, rows: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    with Client(url, reference_values=references, max_age_s=60.0, padding=True, token="key") as client:
        said: dict[str, Any] = client.metadata("scores", version="2.0")
        assert said
        return client.infer("scores", {"rows": rows}, version="2.0")


async def infer_in_a_loop(url: str, references: ReferenceValues, rows: NDArray[np.float32]) -> bytes:
    async with AsyncClient(url, reference_values=references) as client:
        outputs: dict[str, NDArray[Any]] = await client.infer("scores", {"rows": rows})
        assert outputs
        answer: Answer = await client.predict("digits", b"png")
        return answer.content


def plain_http(url: str, references: ReferenceValues) -> httpx.Client:
    return httpx.Client(transport=transport(url, reference_values=references), base_url=url)


def plain_async_http(url: str, references: ReferenceValues) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=async_transport(url, reference_values=references), base_url=url)


def checkpoint(state: dict[str, object], path: Path, keys: CacheClient) -> object:
    header: SealedHeader = cloister.torch.save(state, path, key="kbs:///models/dek/net", model_id="net")
    assert header.key_version > 0
    return cloister.torch.load(path, model_id="net", keys=keys)


def read(container: Path, key: SecretKey, signers: Path, buffer: bytearray) -> int | None:
    with open_sealed(container, key=key, trusted=TrustedSigners.from_file(signers)) as sealed:
        return sealed.readinto(buffer)
