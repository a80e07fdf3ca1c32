"""Every restriction of AWS's specification, each broken once under a simulated root."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attest import AppraisalDenied, ReferenceValues, appraise, verify_evidence
from cloister.attest.dcap import DcapEndorsements
from cloister.attest.nitro import NitroClaims, NitroEndorsements
from cloister.attest.verifier import parse_endorsements
from cloister.errors import (
    BadSignature,
    CloisterError,
    EndorsementMismatch,
    MalformedInput,
    StaleEvidence,
    UntrustedRoot,
)
from tests.attest.conftest import NOW
from tests.fakes.nitro import ES384, PCR0, USER_DATA, FakeNitro, encode
from tests.fakes.p384_pki import BEGIN, END, Holder, issue


@pytest.fixture(scope="module")
def nitro() -> FakeNitro:
    """A simulated hypervisor."""
    return FakeNitro()


def verify(nitro: FakeNitro, raw: bytes) -> NitroClaims:
    """Verify under the simulated root."""
    claims = verify_evidence("nitro", raw, None, NOW, roots=[nitro.root])
    assert isinstance(claims, NitroClaims)
    return claims


def test_simulated_document(nitro: FakeNitro) -> None:
    """A document under another root than AWS's has its claims, and is simulated."""
    claims = verify(nitro, nitro.document())
    assert claims.simulated
    assert not claims.debug
    assert (claims.report_data, claims.pcrs[0], claims.instance_id) == (USER_DATA, PCR0, "i-1")
    assert claims.to_mapping()["pcrs"]["0"] == PCR0.hex()
    with pytest.raises(UntrustedRoot):
        verify_evidence("nitro", nitro.document(), None, NOW)


BAD_MEMBERS: dict[str, Any] = {
    "module_id": [..., "", 7, b"i-1"],
    "digest": [..., "SHA256", b"SHA384", None],
    "timestamp": [..., 0, -1, "now", 2**63],
    "pcrs": [..., {}, [PCR0], {32: PCR0}, {-1: PCR0}, {"0": PCR0}, {0: PCR0[:47]}, {0: "text"}],
    "certificate": [..., b"", b"\x30\x00", bytes(1025), None],
    "cabundle": [..., [], [b""], [bytes(1025)], b"", [bytes(8)] * 8],
    "public_key": [b"", bytes(1025), "text"],
    "user_data": [bytes(513), "text"],
    "nonce": [bytes(513), 1],
    "unknown": [1],
    "nitrotpm_pcrs": [{0: PCR0}],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, bad in BAD_MEMBERS.items() for value in bad], ids=str
)
def test_restrictions(nitro: FakeNitro, name: str, value: Any) -> None:
    """A missing, unknown, or wrongly formed member is malformed, even in a signed document."""
    with pytest.raises(MalformedInput):
        verify(nitro, nitro.document(**{name: value}))


@pytest.mark.parametrize("name", ["public_key", "user_data", "nonce"])
def test_optional_members(nitro: FakeNitro, name: str) -> None:
    """An optional member may be absent."""
    assert getattr(verify(nitro, nitro.document(**{name: ...})), name) is None


def test_duplicate_member(nitro: FakeNitro) -> None:
    """A member that occurs twice is refused, since two readers might believe different ones."""
    members = nitro.members()
    twice = b"\xaa" + encode(members)[1:] + encode("digest") + encode("SHA384")
    with pytest.raises(MalformedInput, match="twice"):
        verify(nitro, nitro.sign(twice))


def test_indefinite_map(nitro: FakeNitro) -> None:
    """A document in a map of indefinite length, as NitroTPM writes it, is accepted."""
    members = nitro.members(pcrs=..., nitrotpm_pcrs={0: bytes(48), 4: PCR0})
    claims = verify(nitro, nitro.sign(b"\xbf" + encode(members)[1:] + b"\xff"))
    assert claims.kind == "tpm"
    assert not claims.debug


@pytest.mark.parametrize(
    "message",
    [
        [ES384, {}, b"", bytes(96)],
        [ES384, {1: -35}, b"p", bytes(96)],
        [bytes.fromhex("a1013826"), {}, b"p", bytes(96)],
        [b"", {}, b"p", bytes(96)],
        [ES384, {}, b"p", bytes(64)],
        [ES384, {}, b"p"],
        [ES384, {}, "p", bytes(96)],
        {},
    ],
    ids=str,
)
def test_cose_structure(nitro: FakeNitro, message: Any) -> None:
    """Another algorithm, an unsigned header or another structure is malformed."""
    with pytest.raises(MalformedInput):
        verify(nitro, encode(message))


def test_signature_of_another(nitro: FakeNitro) -> None:
    """A document that another key signed is refused."""
    payload = encode(nitro.members())
    with pytest.raises(BadSignature):
        verify(nitro, FakeNitro().sign(payload))


def rebuilt(nitro: FakeNitro, *, instance: Holder | None = None, leaf: Holder | None = None) -> bytes:
    """A document whose chain has other certificates in two places."""
    instance = instance or nitro.instance
    leaf = leaf or issue("leaf", instance, authority=False)
    other = FakeNitro(root=nitro.root_holder)
    other.leaf = leaf
    bundle = [nitro.root_holder.der, nitro.zone.der, instance.der]
    return other.document(cabundle=bundle)


def test_path_length(nitro: FakeNitro) -> None:
    """An authority below one that may have none below it is refused."""
    below = issue("below", nitro.instance)
    leaf = issue("leaf", below, authority=False)
    other = FakeNitro()
    other.leaf = leaf
    with pytest.raises(EndorsementMismatch, match="below it"):
        verify(nitro, other.document(cabundle=[*nitro.bundle, below.der]))


def test_key_usage(nitro: FakeNitro) -> None:
    """An authority must be allowed to sign certificates, the leaf to sign; the leaf is no authority."""
    usage = {"sign_usage": False}
    with pytest.raises(EndorsementMismatch, match="may not sign certificates"):
        verify(nitro, rebuilt(nitro, instance=issue("i", nitro.zone, **usage)))  # type: ignore[arg-type]
    with pytest.raises(EndorsementMismatch, match="may not sign certificates"):
        verify(nitro, rebuilt(nitro, instance=issue("i", nitro.zone, authority=False)))
    leaf = issue("leaf", nitro.instance, authority=False, sign_usage=False)
    with pytest.raises(EndorsementMismatch, match="may not sign evidence"):
        verify(nitro, rebuilt(nitro, leaf=leaf))
    with pytest.raises(EndorsementMismatch, match="begins with an authority"):
        verify(nitro, rebuilt(nitro, leaf=issue("leaf", nitro.instance, sign_usage=True)))


def test_dates(nitro: FakeNitro) -> None:
    """Each certificate must be valid now, those above the leaf too."""
    hour = timedelta(hours=1)
    for begin, end in ((NOW + hour, END), (BEGIN, NOW - hour)):
        with pytest.raises(StaleEvidence):
            verify(
                nitro, rebuilt(nitro, leaf=issue("l", nitro.instance, authority=False, begin=begin, end=end))
            )
        with pytest.raises(StaleEvidence):
            verify(nitro, rebuilt(nitro, instance=issue("i", nitro.zone, begin=begin, end=end)))


def test_broken_chains(nitro: FakeNitro) -> None:
    """A certificate that another one signed, in another curve or with another hash, is refused."""
    stranger = issue("zone.fake", FakeNitro().root_holder)
    p256 = issue("l", nitro.instance, authority=False, key=ec.generate_private_key(ec.SECP256R1()))
    sha256 = issue("l", nitro.instance, authority=False, algorithm=hashes.SHA256())
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    critical = issue("l", nitro.instance, authority=False, extensions=((unknown, True),))
    cases: list[tuple[bytes, type[CloisterError]]] = [
        (nitro.document(cabundle=[nitro.root_holder.der, stranger.der, nitro.instance.der]), BadSignature),
        (nitro.document(cabundle=list(reversed(nitro.bundle))), UntrustedRoot),
        (nitro.document(certificate=p256.der), MalformedInput),
        (nitro.document(certificate=sha256.der), MalformedInput),
        (nitro.document(certificate=critical.der), MalformedInput),
        (nitro.document(certificate=nitro.leaf.der + b"\0"), MalformedInput),
    ]
    for raw, error in cases:
        with pytest.raises(error):
            verify(nitro, raw)


def denied(claims: NitroClaims, **table: object) -> set[str]:
    """Names of the checks that fail."""
    values = ReferenceValues.from_mapping({"allow_simulated": True, "nitro": table})
    try:
        appraise(claims, values, NOW)
    except AppraisalDenied as error:
        return {check.name for check in error.result.checks if not check.passed}
    return set()


def test_appraisal(nitro: FakeNitro) -> None:
    """PCR 0 must be named; module, instance, age and the other PCRs are compared where they are."""
    claims = verify(nitro, nitro.document())
    good = {"pcr0": [PCR0.hex()]}
    assert denied(claims) == {"pcr0"}
    assert denied(claims, **good) == set()
    assert denied(claims, pcr0=["00" * 48]) == {"pcr0"}
    assert denied(claims, **good, pcr8=["00" * 48]) == {"pcr8"}
    assert denied(claims, **good, module_id=["i-2-enc1"], instance_id=["i-2"]) == {"module_id", "instance_id"}
    assert denied(claims, **good, module_id=["i-1-enc1"], instance_id=["i-1"], max_age_s=7200) == set()
    assert denied(claims, **good, max_age_s=7199) == {"max_age_s"}
    assert denied(claims, **good, kind=["tpm"]) == {"kind"}


def test_debug_enclave(nitro: FakeNitro) -> None:
    """An enclave without measurements of its image is a debug enclave, and refused unless permitted."""
    claims = verify(nitro, nitro.document(pcrs={0: bytes(48), 1: bytes(48), 2: bytes(48), 4: PCR0}))
    assert claims.debug
    assert denied(claims, pcr0=["00" * 48]) == {"debug"}
    assert denied(claims, pcr0=["00" * 48], allow_debug=True) == set()


def test_endorsements(nitro: FakeNitro, endorsements: DcapEndorsements) -> None:
    """Endorsements are empty, and those of another vendor are refused."""
    parsed = parse_endorsements("nitro", {})
    assert parsed == NitroEndorsements()
    assert parsed.to_mapping() == {}
    verify_evidence("nitro", nitro.document(), parsed, NOW, roots=[nitro.root])
    with pytest.raises(MalformedInput):
        parse_endorsements("nitro", {"root": ""})
    with pytest.raises(MalformedInput, match="another vendor"):
        verify_evidence("nitro", nitro.document(), endorsements, NOW)
