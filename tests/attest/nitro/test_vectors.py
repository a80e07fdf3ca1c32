"""Genuine documents of AWS: each gives its verdict at its time, and every listed mutation is refused."""

from __future__ import annotations

import json
import statistics
import time
from datetime import UTC, datetime
from functools import cache
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attest import AppraisalDenied, ReferenceValues, appraise, verify_evidence
from cloister.attest.nitro import NitroClaims
from cloister.attest.nitro.cose import MAX_DOCUMENT_BYTES, parse_sign1
from cloister.attest.nitro.roots import aws_roots, is_aws_root
from cloister.errors import MalformedInput, StaleEvidence, UntrustedRoot, VerificationError
from tests.attest.test_dcap_vectors import mutate
from tests.fakes.nitro import FakeNitro
from tests.vectors import vector, vectors_folder

DECLARED = (VerificationError, MalformedInput)


@cache
def entries(kind: str) -> tuple[dict[str, Any], ...]:
    """The manifest's entries of one kind; none where the vectors are absent."""
    path = vectors_folder() / "MANIFEST.json"
    listed = json.loads(path.read_text())["entries"] if path.exists() else []
    return tuple(entry for entry in listed if entry["kind"] == kind)


def moment(seconds: int) -> datetime:
    """The manifest's time."""
    return datetime.fromtimestamp(seconds, UTC)


def read(file: str) -> bytes:
    """One vector."""
    return vector(file).read_bytes()


GENUINE = [entry["file"] for entry in entries("nitro")]
CASES = [
    (entry["file"], index)
    for entry in entries("nitro-mutations")
    for index in range(len(json.loads(read(entry["file"]))["mutations"]))
]


def expected_of(file: str) -> dict[str, Any]:
    """What the manifest expects of a file."""
    return next(entry["expected"] for entry in entries("nitro") if entry["file"] == file)


def values(claims: NitroClaims, **more: object) -> ReferenceValues:
    """Reference values that name this document's own PCR 0 and kind."""
    return ReferenceValues.from_mapping(
        {"nitro": {"pcr0": [claims.pcrs[0].hex()], "kind": [claims.kind], **more}}
    )


@pytest.mark.parametrize("file", GENUINE)
def test_document_has_its_verdict(file: str) -> None:
    """Each document has the claims and the verdict that the manifest states; debug only where permitted."""
    expected = expected_of(file)
    now = moment(expected["verify_at"])
    claims = verify_evidence("nitro", read(file), None, now)
    assert isinstance(claims, NitroClaims)
    assert not claims.simulated
    assert claims.module_id == expected["module_id"]
    assert {str(i): pcr.hex() for i, pcr in claims.pcrs.items() if any(pcr)} == expected["nonzero_pcrs"]
    assert len(claims.pcrs) == expected["pcr_count"]
    assert (claims.user_data.hex() if claims.user_data is not None else None) == expected["user_data"]
    assert (claims.nonce.hex() if claims.nonce is not None else None) == expected["nonce"]
    assert claims.debug == expected["verdict"].startswith("reject")
    if claims.debug:
        with pytest.raises(AppraisalDenied, match="debug"):
            appraise(claims, values(claims), now)
    assert appraise(claims, values(claims, allow_debug=claims.debug), now).checks


@pytest.mark.parametrize("file", GENUINE)
def test_document_holds_while_its_leaf_does(file: str) -> None:
    """A document is accepted at both ends of the stated window, and refused beyond them."""
    begin, end = (datetime.fromisoformat(text) for text in expected_of(file)["valid_window"])
    verify_evidence("nitro", read(file), None, begin)
    verify_evidence("nitro", read(file), None, end)
    for now in (moment(int(begin.timestamp()) - 1), moment(int(end.timestamp()) + 1)):
        with pytest.raises(StaleEvidence):
            verify_evidence("nitro", read(file), None, now)


@pytest.mark.parametrize(("file", "index"), CASES)
def test_listed_mutations_are_refused(file: str, index: int) -> None:
    """Every listed change to a genuine document is refused: bytes, time, or trusted root."""
    document = json.loads(read(file))
    mutation = document["mutations"][index]
    raw = mutate(read(document["base"]), mutation.get("ops", []))
    now = moment(mutation.get("verify_at", document["verify_at"]))
    roots = [FakeNitro().root] if mutation["name"] == "cabundle_root_swapped" else None
    with pytest.raises(DECLARED):
        verify_evidence("nitro", raw, None, now, roots=roots)


@pytest.mark.skipif(not GENUINE, reason="no test vectors")
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_byte_can_be_changed(data: st.DataObject) -> None:
    """Whichever byte of a genuine document is changed, it is refused; so is every truncation."""
    file = data.draw(st.sampled_from(GENUINE))
    raw = bytearray(read(file))
    now = moment(expected_of(file)["verify_at"])
    at = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(DECLARED):
        verify_evidence("nitro", bytes(raw[:at]), None, now)
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DECLARED):
        verify_evidence("nitro", bytes(raw), None, now)


def test_root_is_pinned() -> None:
    """The embedded root is the one that AWS publishes, and no other certificate has its key."""
    (entry,) = entries("nitro-cert") or [None]
    if entry is None:
        pytest.skip("no test vectors")
    (root,) = aws_roots()
    assert root.fingerprint(hashes.SHA256()).hex() == entry["expected"]["sha256_der"]
    assert is_aws_root(root)
    assert not is_aws_root(FakeNitro().root)


@pytest.mark.skipif(not GENUINE, reason="no test vectors")
def test_another_root() -> None:
    """A genuine document is refused where only another root is trusted."""
    now = moment(expected_of(GENUINE[0])["verify_at"])
    with pytest.raises(UntrustedRoot):
        verify_evidence("nitro", read(GENUINE[0]), None, now, roots=[FakeNitro().root])


@pytest.mark.skipif(not GENUINE, reason="no test vectors")
def test_tagged_form() -> None:
    """The same document with CBOR tag 18 is accepted; another tag, or two, is not."""
    raw, now = read(GENUINE[0]), moment(expected_of(GENUINE[0])["verify_at"])
    verify_evidence("nitro", b"\xd2" + raw, None, now)
    for prefix in (b"\xd1", b"\xd2\xd2", b"\xd8\x12"):
        with pytest.raises(MalformedInput):
            verify_evidence("nitro", prefix + raw, None, now)
    assert len(parse_sign1(raw).payload) < MAX_DOCUMENT_BYTES


@pytest.mark.skipif(not GENUINE, reason="no test vectors")
def test_time_of_verification() -> None:
    """With the chain cached a document takes little more than one signature."""
    raw, now = read(GENUINE[0]), moment(expected_of(GENUINE[0])["verify_at"])
    samples = []
    for _ in range(100):
        begin = time.perf_counter()
        verify_evidence("nitro", raw, None, now)
        samples.append(time.perf_counter() - begin)
    print(f"Nitro verification: {statistics.median(samples) * 1e3:.2f} ms")
    assert statistics.median(samples) < 0.01  # the figure is kept by the benchmark
