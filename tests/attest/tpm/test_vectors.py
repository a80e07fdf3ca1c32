"""Quotes of real TPMs, with what the manifest expects of them."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import time
from collections import Counter
from datetime import UTC, datetime
from statistics import median
from typing import Any

import pytest
from cryptography.x509 import load_pem_x509_certificate
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest import verify_evidence
from cloister.attest.tpm import TpmClaims, TpmEndorsements
from cloister.attest.tpm.certificates import load_certificate, split_pem
from cloister.attest.tpm.roots import azure_issuers, tpm_roots
from cloister.errors import MalformedInput, VerificationError
from tests.attest.eventlog.test_vectors import entries
from tests.vectors import vector

pytestmark = pytest.mark.filterwarnings("ignore:Attribute's length")
NOW = datetime(2026, 6, 1, tzinfo=UTC)
TPM = entries("tpm")
QUOTES = [
    entry for entry in TPM if re.search(r"quote\.out|evidence\.json|fixture\.json|\.pb$", entry["file"])
]
judged: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def count() -> Any:
    """Says at the end how many entries were judged."""
    yield
    print(f"TPM vectors judged as expected: {dict(judged)}, of {len(TPM)} files")


def evidence_of(entry: dict[str, Any]) -> bytes:
    """Evidence as it is; the files of tpm2-tools become one JSON object."""
    path = vector(entry["file"])
    if path.suffix != ".out":
        return path.read_bytes()
    stem = path.name.removesuffix("quote.out")
    parts = {
        name: (path.parent / f"{stem}{name}").read_bytes().hex() for name in ("quotesig.out", "quotepcr.out")
    }
    return json.dumps(
        {
            "ak_public": (path.parent / f"{stem}ak.pub").read_bytes().hex(),
            "tpm_quote": {
                "message": path.read_bytes().hex(),
                "signature": parts["quotesig.out"],
                "pcrs": parts["quotepcr.out"],
            },
        }
    ).encode()


@pytest.mark.parametrize("entry", QUOTES, ids=lambda entry: entry["file"])
def test_quote_has_its_verdict(entry: dict[str, Any]) -> None:
    """Each real quote is accepted with the nonce, PCRs, key and clock that the manifest states."""
    claims = verify_evidence("tpm", evidence_of(entry), None, NOW)
    assert isinstance(claims, TpmClaims)
    expected = entry["expected"]
    assert not claims.simulated
    assert claims.tcb_status == ("Certified" if expected.get("ak_chain") else "Uncertified")
    if "quotes" in expected:
        assert set(claims.pcrs) == {quote["bank"] for quote in expected["quotes"]}
        assert claims.report_data.hex() == expected["quotes"][0]["nonce"]
        assert claims.events
    else:
        assert expected["verdict"] == "pass"
        assert claims.report_data.hex() == expected["nonce_extraData"]
        assert claims.pcr_digest.hex() == expected["pcrDigest"]
        assert claims.qualified_signer.hex() == expected["qualifiedSigner"]
        assert (claims.clock, claims.reset_count) == (expected["clock"], expected["resetCount"])
        assert [sorted(claims.pcrs["sha256"])] == [pcrs for _, pcrs in expected["pcr_selection"]]
    judged["accepted"] += 1


@pytest.mark.parametrize("entry", entries("vtpm-cert"), ids=lambda entry: entry["file"])
def test_pinned_certificates_are_the_published_ones(entry: dict[str, Any]) -> None:
    """The roots and issuers that are built in are the ones in the vectors."""
    certificate = load_pem_x509_certificate(vector(entry["file"]).read_bytes())
    assert certificate in (*tpm_roots(), *azure_issuers())
    judged["certificates"] += 1


def test_keylime_key_forms_agree() -> None:
    """The PEM of the real key is the same key as its TPM2B_PUBLIC."""
    folder = vector("tpm/dev")
    if not folder.exists():
        pytest.skip("no test vectors")
    pem = TpmEndorsements.from_mapping({"ak_public": (folder / "keylime_akpub.pem").read_text()})
    own = TpmEndorsements.from_mapping({"ak_public": (folder / "keylime_ak.pub").read_bytes().hex()})
    assert pem == own


@pytest.mark.parametrize(
    "entry", [entry for entry in QUOTES if not entry["file"].endswith(".pb")], ids=lambda entry: entry["file"]
)
@given(position=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255), signature=st.booleans())
def test_flipped_quotes_are_refused(
    entry: dict[str, Any], position: float, mask: int, signature: bool
) -> None:
    """Any changed byte of the message or signature of a real quote is refused."""
    document = json.loads(evidence_of(entry))
    holder = document.get("tpm_quote") or document["attestation"]["tpm"]["ecc_p256"]
    name = "signature" if signature else "message" if "message" in holder else "attest_data"
    content = bytearray(_bytes(holder[name]))
    content[int(position * len(content))] ^= mask
    holder[name] = list(content)
    with pytest.raises((MalformedInput, VerificationError)):
        verify_evidence("tpm", json.dumps(document).encode(), None, NOW)


@pytest.mark.parametrize(
    "entry", [entry for entry in QUOTES if entry["file"].endswith(".pb")], ids=lambda entry: entry["file"]
)
@given(position=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255), number=st.integers(0, 2))
def test_flipped_messages_are_refused(entry: dict[str, Any], position: float, mask: int, number: int) -> None:
    """Any changed byte of a real quote's message in a protocol buffer is refused, whichever quote it is."""
    raw = bytearray(evidence_of(entry))
    begin = 0
    for _ in range(number + 1):
        begin = raw.index(b"\xffTCG\x80\x18", begin + 1)
    raw[begin + int(position * 117)] ^= mask
    with pytest.raises((MalformedInput, VerificationError)):
        verify_evidence("tpm", bytes(raw), None, NOW)


@given(position=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_flipped_bytes_of_a_chain_are_refused(position: float, mask: int) -> None:
    """Any changed byte of the certificates between a real key and its root is refused."""
    path = vector("tpm/dev/vaportpm_test-gcp-amd-fixture.json")
    if not path.exists():
        pytest.skip("no test vectors")
    document = json.loads(path.read_text())
    pem = document["attestation"]["gcp"]["ak_cert_chain"].encode()
    ders = [bytearray(part) for part in _ders(pem)][:2]
    place = int(position * sum(map(len, ders)))
    index = 0 if place < len(ders[0]) else 1
    ders[index][place - index * len(ders[0])] ^= mask
    document["attestation"]["gcp"]["ak_cert_chain"] = [list(part) for part in ders]
    with pytest.raises((MalformedInput, VerificationError)):
        verify_evidence("tpm", json.dumps(document).encode(), None, NOW)


@given(data=st.data())
def test_damaged_evidence_raises_nothing_else(data: st.DataObject) -> None:
    """Truncated and changed evidence of every form raises only what is declared."""
    if not QUOTES:
        pytest.skip("no test vectors")
    raw = bytearray(evidence_of(data.draw(st.sampled_from(QUOTES))))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    for part in (bytes(raw), bytes(raw[:place])):
        with contextlib.suppress(MalformedInput, VerificationError):
            verify_evidence("tpm", part, None, NOW)


@given(st.binary(max_size=200), st.sampled_from([b"", b"{", b'{"tpm_quote":', b"\n\x98\x02", b"\x12"]))
def test_random_bytes_raise_nothing_else(raw: bytes, head: bytes) -> None:
    """Random bytes are malformed."""
    with pytest.raises(MalformedInput):
        verify_evidence("tpm", head + raw, None, NOW)


def test_time_of_verification() -> None:
    """A quote with a certificate is verified in well under a millisecond, once its chain is known."""
    found = [entry for entry in QUOTES if entry["expected"].get("ak_chain")]
    if not found:
        pytest.skip("no test vectors")
    raw = evidence_of(found[0])
    times = []
    for _ in range(50):
        begin = time.perf_counter()
        verify_evidence("tpm", raw, None, NOW)
        times.append(time.perf_counter() - begin)
    print(f"TPM verification: {median(times) * 1e3:.2f} ms")
    assert median(times) < 0.01


def _bytes(value: str) -> bytes:
    return bytes.fromhex(value) if re.fullmatch("[0-9a-f]+", value) else base64.b64decode(value)


def _ders(pem: bytes) -> list[bytes]:
    parts = split_pem(pem)
    assert all(load_certificate(part) for part in parts)
    return list(parts)
