"""Evidence of a TPM: every link, broken one at a time."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attest import AppraisalDenied, ReferenceValues, appraise, verify_evidence
from cloister.attest.appraisal import describe
from cloister.attest.nitro import NitroEndorsements
from cloister.attest.tpm import TpmClaims, TpmEndorsements
from cloister.attest.verifier import parse_endorsements, vendor_roots
from cloister.errors import (
    BadSignature,
    BindingMismatch,
    CloisterError,
    ConfigError,
    EndorsementMismatch,
    MalformedInput,
    StaleEvidence,
    UntrustedRoot,
)
from tests.fakes.nitro import FakeNitro
from tests.fakes.p384_pki import END, Holder, issue
from tests.fakes.tpm import NONCE, FakeTpm, encode, event_log, extend, pcr_values, rsa_key, tpmt_public

NOW = datetime(2026, 10, 1, 12, 0, tzinfo=UTC)
PCRS = {"sha256": pcr_values("sha256", range(24))}
ROOT = issue("Fake TPM root")
ISSUER = issue("Fake TPM issuer", ROOT)
AK = issue("Fake TPM", ISSUER, authority=False)
CHAIN = [base64.b64encode(part.der).decode() for part in (AK, ISSUER)]


def verify(document: dict[str, Any], endorsements: Any = None, **more: Any) -> TpmClaims:
    """Claims of evidence at ``NOW``."""
    claims = verify_evidence("tpm", encode(document), endorsements, more.pop("now", NOW), **more)
    assert isinstance(claims, TpmClaims)
    return claims


def certified(**more: Any) -> dict[str, Any]:
    """Evidence of the TPM with a certificate."""
    return FakeTpm(AK.key, algorithm="sha384").evidence(PCRS, **{"ak_certificates": CHAIN, **more})


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("scheme", ["RSASSA", "RSAPSS", "P-256", "P-384", "P-521"])
def test_every_signature_scheme(scheme: str, algorithm: str) -> None:
    """Quotes of RSA and ECC keys with each hash are verified."""
    curves = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
    key = ec.generate_private_key(curves[scheme]) if scheme in curves else rsa_key()
    tpm = FakeTpm(key, scheme=scheme, algorithm=algorithm)
    claims = verify(tpm.evidence(PCRS))
    assert claims.report_data == NONCE
    assert claims.pcrs == PCRS
    assert (claims.tcb_status, claims.simulated) == ("Uncertified", False)
    assert claims.hardware_id == hashlib.sha256(tpm.spki).hexdigest()


@pytest.mark.parametrize("key", [rsa_key(), ec.generate_private_key(ec.SECP256R1())])
def test_bare_signatures(key: Any) -> None:
    """A signature that was cut out of its structure is verified with SHA-256."""
    tpm = FakeTpm(key)
    document = tpm.evidence(PCRS)
    raw = tpm.raw_signature(bytes.fromhex(document["tpm_quote"]["message"]))
    document["tpm_quote"]["signature"] = list(raw)
    assert verify(document).pcrs == PCRS


def test_pcr_forms_agree() -> None:
    """A list in the order of the selection, a list of all 24 and an object say the same."""
    some = {"sha256": {number: PCRS["sha256"][number] for number in (4, 7, 23)}}
    document = FakeTpm().evidence(some)
    forms = [
        [PCRS["sha256"][number].hex() for number in (4, 7, 23)],
        [value.hex() for value in PCRS["sha256"].values()],
        {"sha256": {str(number): value.hex() for number, value in PCRS["sha256"].items()}},
    ]
    for form in forms:
        document["tpm_quote"]["pcrs"] = form
        assert verify(document).pcrs == some
    document["tpm_quote"]["pcrs"] = None
    assert verify(document).pcrs == {}


def change(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one member of the quote."""

    def apply(document: dict[str, Any]) -> None:
        quote = document["tpm_quote"]
        quote[name] = value(quote[name]) if callable(value) else value

    return apply


def flip(text: str) -> str:
    """The first digit, changed."""
    return ("1" if text[-1] == "0" else "0").join((text[:-1], ""))


@pytest.mark.parametrize(
    ("apply", "error"),
    [
        (change("signature", flip), BadSignature),
        (change("message", lambda text: text.replace(NONCE.hex(), bytes(32).hex())), BadSignature),
        (change("pcrs", lambda pcrs: {"sha256": {**pcrs["sha256"], "4": bytes(32).hex()}}), BindingMismatch),
        (change("pcrs", lambda pcrs: {"sha256": {"0": pcrs["sha256"]["0"]}}), MalformedInput),
        (change("pcrs", lambda pcrs: {"sha384": pcrs["sha256"]}), MalformedInput),
        (change("pcrs", lambda pcrs: {"sha256": {**pcrs["sha256"], "04": bytes(32).hex()}}), MalformedInput),
        (change("pcrs", lambda pcrs: {"sha256": {**pcrs["sha256"], "4": "00"}}), MalformedInput),
        (change("pcrs", [bytes(32).hex()] * 5), MalformedInput),
        (change("pcrs", 7), MalformedInput),
        (change("message", ""), MalformedInput),
        (change("signature", None), MalformedInput),
        (lambda document: document.update(ak_public=None), MalformedInput),
        (lambda document: document.update(nonce="00"), BindingMismatch),
        (lambda document: document.update(quote=document["tpm_quote"]), MalformedInput),
        (lambda document: document.update(tpm_quote=[]), MalformedInput),
        (lambda document: document.update(ak_certificates=["zz"]), MalformedInput),
    ],
)
def test_broken_evidence(apply: Callable[[dict[str, Any]], None], error: type[CloisterError]) -> None:
    """Each part of evidence that was changed is refused, and says why."""
    document = FakeTpm().evidence(PCRS)
    apply(document)
    with pytest.raises(error):
        verify(document)


def test_certificate_leads_to_the_root() -> None:
    """A certified key leads to the given root, is simulated, and brings its names along."""
    claims = verify(certified(), roots=[ROOT.certificate])
    assert (claims.tcb_status, claims.simulated, claims.root) == ("Certified", True, "CN=Fake TPM root")
    assert claims.ak_subject == "CN=Fake TPM"
    padded = certified(ak_certificates=None)
    padded["ak_certificate_pem"] = (AK.der + bytes(3000)).hex()
    padded["ak_intermediate_certificates_pem"] = [ISSUER.pem.decode()]
    assert verify(padded, roots=[ROOT.certificate]).tcb_status == "Certified"


def leaf(**more: Any) -> Holder:
    """Another certificate of the same key."""
    return issue("Fake TPM", ISSUER, **{"authority": False, "key": AK.key, **more})


@pytest.mark.parametrize(
    ("chain", "error"),
    [
        ([AK, issue("Fake TPM issuer", ROOT)], BadSignature),
        ([AK], UntrustedRoot),
        ([leaf(authority=True), ISSUER], EndorsementMismatch),
        ([leaf(sign_usage=False), ISSUER], EndorsementMismatch),
        ([leaf(end=NOW - timedelta(days=1)), ISSUER], StaleEvidence),
        ([leaf(begin=NOW + timedelta(days=1)), ISSUER], StaleEvidence),
        (
            [issue("Fake TPM", issue("Fake TPM", ISSUER, authority=False), authority=False, key=AK.key)],
            BadSignature,
        ),
        ([issue("other", ISSUER, authority=False), ISSUER], BindingMismatch),
    ],
    ids=[
        "other-issuer",
        "no-issuer",
        "authority",
        "usage",
        "expired",
        "early",
        "not-an-authority",
        "other-key",
    ],
)
def test_broken_chain(chain: list[Holder], error: type[CloisterError]) -> None:
    """A chain that does not hold is refused, whatever it says."""
    document = certified(ak_certificates=[base64.b64encode(part.der).decode() for part in chain])
    with pytest.raises((error, UntrustedRoot) if error is BadSignature else error):
        verify(document, roots=[ROOT.certificate])


def test_foreign_roots() -> None:
    """A chain that ends elsewhere, a key without a certificate, and garbage after one are refused."""
    with pytest.raises(UntrustedRoot):
        verify(certified())
    with pytest.raises(UntrustedRoot):
        verify(FakeTpm().evidence(PCRS), roots=[ROOT.certificate])
    with pytest.raises(MalformedInput):
        verify(certified(ak_certificates=[(AK.der + b"\x00\x01").hex()]))
    with pytest.raises(StaleEvidence):
        verify(certified(), roots=[ROOT.certificate], now=END + timedelta(seconds=1))


def test_lone_certificate_of_an_unknown_issuer_says_nothing() -> None:
    """A key whose only certificate leads nowhere is uncertified, and refused where roots are given."""
    document = certified(ak_certificates=CHAIN[:1])
    assert (verify(document).tcb_status, verify(document).ak_subject) == ("Uncertified", "")
    with pytest.raises(UntrustedRoot):
        verify(document, roots=vendor_roots("tpm"))


def test_endorsed_key() -> None:
    """A key in the endorsements is endorsed, another one refused; both forms survive JSON."""
    tpm = FakeTpm()
    endorsements = parse_endorsements("tpm", {"ak_public": tpmt_public(tpm.key.public_key()).hex()})
    assert TpmEndorsements.from_mapping(endorsements.to_mapping()) == endorsements
    assert verify(tpm.evidence(PCRS), endorsements, roots=[ROOT.certificate]).tcb_status == "Endorsed"
    assert verify(tpm.evidence(PCRS, ak_public=tpm.spki.hex()), endorsements).tcb_status == "Endorsed"
    with pytest.raises(EndorsementMismatch):
        verify(certified(), endorsements)
    chain = TpmEndorsements.from_mapping({"ak_cert_chain": AK.pem.decode() + ISSUER.pem.decode()})
    assert TpmEndorsements.from_mapping(chain.to_mapping()) == chain
    bare = certified(ak_certificates=None, ak_public=None)
    assert verify(bare, chain, roots=[ROOT.certificate]).tcb_status == "Certified"
    wrong: list[Any] = [{"ak": ""}, {"ak_public": "zz"}, {"ak_certificates": [], "ak_cert_chain": []}, 5]
    for mapping in wrong:
        with pytest.raises(MalformedInput):
            TpmEndorsements.from_mapping(mapping)
    with pytest.raises(MalformedInput):
        verify(bare, NitroEndorsements())


def test_event_log_replays_to_the_quote() -> None:
    """A log of the quoted PCRs brings events; one that replays to anything else is refused."""
    raw = event_log([(4, 4, bytes(4), bytes(4)), (8, 0xD, b"quiet", b"kernel_cmdline: quiet\x00")])
    pcrs = {"sha256": {**PCRS["sha256"], 4: extend("sha256", bytes(4)), 8: extend("sha256", b"quiet")}}
    claims = verify(FakeTpm().evidence(pcrs, event_log=base64.b64encode(raw).decode()))
    assert [event.get("text") for event in claims.events] == [None, "quiet"]
    assert claims.to_mapping()["pcrs"]["sha256"]["4"] == pcrs["sha256"][4].hex()
    with pytest.raises(BindingMismatch, match="pcr4"):
        verify(FakeTpm().evidence(PCRS, event_log=raw.hex()))
    with pytest.raises(MalformedInput, match="banks"):
        verify(FakeTpm().evidence({"sha384": pcr_values("sha384", [4])}, event_log=raw.hex()))
    with pytest.raises(MalformedInput, match="above 23"):
        verify(FakeTpm().evidence(PCRS, event_log=event_log([(24, 4, b"", b"")]).hex()))


def nitro(fake: FakeNitro, tpm: FakeTpm, **changes: Any) -> dict[str, Any]:
    """Evidence of a NitroTPM, in vaportpm's form."""
    pcrs = {"sha384": pcr_values("sha384", range(24))}
    message = tpm.message(pcrs)
    numbers: Any = tpm.key.public_key().public_numbers()
    x, y = (number.to_bytes(32, "big") for number in (numbers.x, numbers.y))
    members = {"pcrs": ..., "nitrotpm_pcrs": pcrs["sha384"], "public_key": b"\x04" + x + y, "nonce": NONCE}
    return {
        "nonce": NONCE.hex(),
        "pcrs": {"sha384": {str(number): value.hex() for number, value in pcrs["sha384"].items()}},
        "ak_pubkeys": {"ecc_p256": {"x": x.hex(), "y": y.hex()}},
        "attestation": {
            "tpm": {
                "ecc_p256": {"attest_data": message.hex(), "signature": tpm.raw_signature(message).hex()}
            },
            "nitro": {"document": fake.document(**{**members, **changes}).hex()},
        },
    }


def test_nitro_document_certifies_the_key() -> None:
    """AWS's document of a NitroTPM certifies the key that it names, with its nonce and PCRs."""
    fake, tpm = FakeNitro(), FakeTpm(ec.generate_private_key(ec.SECP256R1()))
    claims = verify(nitro(fake, tpm), roots=[fake.root])
    assert (claims.tcb_status, claims.simulated, claims.root) == ("Certified", True, "i-1-enc1")
    broken: list[dict[str, Any]] = [
        {"public_key": b"\x04" + bytes(64)},
        {"public_key": None},
        {"nonce": b"other"},
        {"nitrotpm_pcrs": {4: bytes(48)}},
        {"nitrotpm_pcrs": ..., "pcrs": pcr_values("sha384", range(3))},
    ]
    for changes in broken:
        with pytest.raises(BindingMismatch):
            verify(nitro(fake, tpm, **changes), roots=[fake.root])
    with pytest.raises(UntrustedRoot):
        verify(nitro(fake, tpm))


GOOD = {"pcrs": {"4": [PCRS["sha256"][4].hex()]}}


def denied(claims: TpmClaims, table: dict[str, Any]) -> set[str]:
    """Names of the checks that fail."""
    values = ReferenceValues.from_mapping({"allow_simulated": True, "tpm": table})
    try:
        appraise(claims, values, NOW)
    except AppraisalDenied as error:
        return {check.name for check in error.result.checks if not check.passed}
    return set()


def test_appraisal() -> None:
    """PCRs must be named and match; a key that nobody certified must be listed."""
    claims, bare = verify(certified(), roots=[ROOT.certificate]), verify(FakeTpm().evidence(PCRS))
    assert denied(claims, GOOD) == set()
    assert denied(claims, {}) == denied(claims, {"pcrs": {}}) == {"pcrs"}
    assert denied(claims, {"pcrs": {"4": []}}) == {"pcrs"}
    assert denied(claims, {"pcrs": {"4": [bytes(32).hex()], "5": [PCRS["sha256"][5].hex()]}}) == {"pcrs"}
    assert denied(claims, {"pcrs": {"4": [bytes(48).hex()]}}) == {"pcrs"}
    assert denied(bare, GOOD) == {"attestation_keys"}
    assert denied(bare, {**GOOD, "attestation_keys": [bare.hardware_id.upper()]}) == set()
    assert denied(claims, {**GOOD, "attestation_keys": [bare.hardware_id]}) == {"attestation_keys"}
    assert denied(claims, {**GOOD, "attestation_keys": []}) == {"attestation_keys"}
    assert denied(bare, {**GOOD, "tcb_status": ["Certified"], "min_firmware_version": 0x2021}) == {
        "attestation_keys",
        "tcb_status",
        "min_firmware_version",
    }


@pytest.mark.parametrize(
    "table",
    [
        {"pcrs": []},
        {"pcrs": {"24": []}},
        {"pcrs": {"x": []}},
        {"pcrs": {"4": "00"}},
        {"pcrs": {"4": ["00"]}},
        {"pcrs": {"4": [bytes(20).hex()]}},
        {"attestation_keys": "x"},
        {"attestation_keys": ["x"]},
    ],
)
def test_wrong_reference_values(table: dict[str, Any]) -> None:
    """A value of the wrong form, SHA-1 included, is an error in the configuration."""
    with pytest.raises(ConfigError):
        ReferenceValues.from_mapping({"tpm": table})


def test_table_is_documented() -> None:
    """Every field says what it is and what leaving it out means."""
    assert all("absent" in meaning for _, _, meaning in describe("tpm"))
