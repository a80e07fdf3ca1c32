"""Reading AMD's certificates, and the extensions in them."""

from __future__ import annotations

import warnings

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest.simulated import snp_pki
from cloister.attest.snp.certificate import load_certificate, verify_issued_by
from cloister.attest.snp.extensions import parse_extensions
from cloister.attest.snp.tcb import decode_tcb, encode_tcb, product_of_cpuid, product_of_name
from cloister.errors import BadSignature, CloisterError, EndorsementMismatch, MalformedInput
from tests.attest.snp.conftest import HWID, NOW, TCB, Platform, der, make_platform
from tests.vectors import vector


def test_serial_zero_without_a_warning() -> None:
    """A genuine VCEK, which has serial number zero, is read silently, and its signature holds."""
    path = vector("snp/dev/v2_milan_vcek_7c614616.ek.der")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        certificate = load_certificate(path.read_bytes(), "VCEK")
    assert (certificate.serial, certificate.name) == (0, "SEV-VCEK")
    issuer = x509.load_pem_x509_certificate(vector("snp/certs/ask_milan.pem").read_bytes())
    verify_issued_by(certificate, issuer, "VCEK")


def test_other_issuers_are_refused(genoa: Platform, turin: Platform) -> None:
    """Neither another name nor another key will do as issuer, nor a key that is not RSA."""
    certificate = load_certificate(der(genoa.certificate), "VCEK")
    verify_issued_by(certificate, genoa.authority.certificate, "VCEK")
    for other in (turin.authority.certificate, genoa.ark.certificate, genoa.certificate):
        with pytest.raises(BadSignature):
            verify_issued_by(certificate, other, "VCEK")


def test_other_signature_algorithms_are_refused() -> None:
    """A certificate that is not signed with RSASSA-PSS is none of AMD's."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = snp_pki._name("SEV-VCEK")
    builder = snp_pki._builder("SEV-VCEK", name, NOW, snp_pki.KEY_VALIDITY, serial=1)
    certificate = builder.public_key(key.public_key()).sign(key, hashes.SHA384())
    with pytest.raises(MalformedInput, match="RSASSA-PSS"):
        load_certificate(certificate.public_bytes(Encoding.DER), "VCEK")


def test_algorithm_outside_of_what_is_signed(genoa: Platform) -> None:
    """Nothing signs the second mention of the algorithm; it must repeat the first."""
    raw = der(genoa.certificate)
    end = load_certificate(raw, "VCEK").signed
    begin = raw.index(end) + len(end)
    for at in range(begin, len(raw) - 512):
        damaged = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with pytest.raises(CloisterError):
            verify_issued_by(load_certificate(damaged, "VCEK"), genoa.authority.certificate, "VCEK")


@pytest.mark.filterwarnings("ignore:Attribute's length:UserWarning")
@given(data=st.data())
def test_damaged_certificates(genoa: Platform, data: st.DataObject) -> None:
    """A changed, cut or extended certificate raises declared errors only, and never verifies."""
    raw = der(genoa.certificate)
    at = data.draw(st.integers(0, len(raw) - 1))
    damaged = data.draw(
        st.sampled_from(
            [raw[:at], raw + b"\x00", raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :], raw[at:]]
        )
    )
    if damaged == raw:
        return
    with pytest.raises(CloisterError):
        verify_issued_by(load_certificate(damaged, "VCEK"), genoa.authority.certificate, "VCEK")


@given(st.binary(max_size=80))
def test_random_bytes(raw: bytes) -> None:
    """Random bytes are not a certificate."""
    with pytest.raises(MalformedInput):
        load_certificate(raw, "VCEK")


def test_extensions_of_both_kinds(genoa: Platform, turin: Platform, vlek: Platform) -> None:
    """A VCEK names its chip, a VLEK its provider; Turin has FMC and a short identity."""
    for platform, hwid, csp_id in (
        (genoa, HWID, ""),
        (turin, HWID[:8], ""),
        (vlek, b"", "CN=simulated.invalid"),
    ):
        found = parse_extensions(load_certificate(der(platform.certificate), "key"))
        assert (found.kind, found.product) == (platform.chip.kind, platform.chip.product)
        assert (found.tcb, found.hwid, found.csp_id) == (platform.chip.tcb, hwid, csp_id)


def test_hardware_id_as_octet_string() -> None:
    """The hardware id is read with and without the tag of an octet string."""
    platform = make_platform(hwid=b"\x04\x40" + HWID)
    assert parse_extensions(load_certificate(der(platform.certificate), "key")).hwid == HWID


@pytest.mark.parametrize(
    "chip",
    [
        {"hwid": HWID[:63]},
        {"hwid": HWID + b"\x00"},
        {"product_name": "Rome-B0"},
        {"product_name": ""},
        {"product_name": "x" * 127},
    ],
)
def test_wrong_extensions(monkeypatch: pytest.MonkeyPatch, chip: dict[str, object]) -> None:
    """An extension of another size or an unknown product is refused."""
    if chip.get("product_name") == "":
        original = snp_pki._extensions
        monkeypatch.setattr(snp_pki, "_extensions", lambda own: {**original(own), "2": b"\x16\x00"})
    platform = make_platform(**chip)
    with pytest.raises(MalformedInput):
        parse_extensions(load_certificate(der(platform.certificate), "key"))


@pytest.mark.parametrize(
    "change",
    [
        {"3.1": None},
        {"3.8": None},
        {"4": None},
        {"2": None},
        {"5": b"\x16\x01x"},
        {"3.9": b"\x02\x01\x01"},
        {"3.1": b"\x02\x02\x01\x00"},
        {"3.1": b"\x02\x01\xff"},
        {"3.1": b"\x04\x01\x01"},
        {"3.1": b""},
        {"2": b"\x0c\x05Genoa"},
        {"2": b"\x16\x05Gen\xffa"},
    ],
)
def test_missing_and_foreign_extensions(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, bytes | None]
) -> None:
    """Each extension must be there, once, and of its type; those of other products must not."""
    original = snp_pki._extensions

    def edited(chip: snp_pki.SimulatedChip) -> dict[str, bytes]:
        merged: dict[str, bytes | None] = {**original(chip), **change}
        return {arc: value for arc, value in merged.items() if value is not None}

    monkeypatch.setattr(snp_pki, "_extensions", edited)
    platform = make_platform()
    with pytest.raises(MalformedInput):
        parse_extensions(load_certificate(der(platform.certificate), "key"))


def test_vlek_with_hardware_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """A VLEK belongs to no chip."""
    original = snp_pki._extensions
    monkeypatch.setattr(snp_pki, "_extensions", lambda own: {**original(own), "4": HWID})
    platform = make_platform("Milan", "vlek")
    with pytest.raises(MalformedInput):
        parse_extensions(load_certificate(der(platform.certificate), "key"))


def test_authority_is_no_endorsement_key(genoa: Platform) -> None:
    """A certificate of another kind is refused by its name."""
    with pytest.raises(EndorsementMismatch):
        parse_extensions(load_certificate(der(genoa.authority.certificate), "key"))


def test_tcb_layouts() -> None:
    """Turin moves every component by one; decoding and encoding are inverse."""
    assert decode_tcb(bytes.fromhex("04020000000018db"), "Milan") == {k: TCB[k] for k in list(TCB)[1:]}
    assert decode_tcb(bytes.fromhex("01040218000000db"), "Turin") == TCB
    for product in ("Milan", "Genoa", "Turin"):
        raw = encode_tcb(TCB, product)
        assert encode_tcb(decode_tcb(raw, product), product) == raw


def test_products() -> None:
    """Processors and product names are of a known line, or of none."""
    assert [product_of_cpuid(0x19, model) for model in (0x01, 0x11, 0xA0, 0x20)] == [
        "Milan",
        "Genoa",
        "Genoa",
        None,
    ]
    assert [product_of_cpuid(0x1A, model) for model in (0x02, 0x11, 0x50)] == ["Turin", "Turin", None]
    assert product_of_cpuid(0x17, 0x31) is None
    assert [product_of_name(name) for name in ("Milan-B0", "Siena", "Bergamo-A2")] == [
        "Milan",
        "Genoa",
        "Genoa",
    ]
    with pytest.raises(MalformedInput):
        product_of_name("Naples")
