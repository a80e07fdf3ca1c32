"""The JSON forms of AMD's endorsements."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest.snp import SnpEndorsements
from cloister.attest.verifier import parse_endorsements
from cloister.errors import MalformedInput
from tests.attest.snp.conftest import Platform, der
from tests.attest.snp.test_table import table_of


def pem(platform: Platform) -> list[str]:
    """VCEK, ASK and ARK as PEM."""
    chain = (platform.certificate, platform.authority.certificate, platform.ark.certificate)
    return [certificate.public_bytes(Encoding.PEM).decode() for certificate in chain]


def test_round_trip(genoa: Platform, vlek: Platform) -> None:
    """What ``to_mapping`` writes, ``from_mapping`` reads."""
    for endorsements in (genoa.endorsements(crl=genoa.crl()), vlek.endorsements(), SnpEndorsements()):
        assert SnpEndorsements.from_mapping(endorsements.to_mapping()) == endorsements


def test_forms_of_one_certificate(genoa: Platform) -> None:
    """PEM, base64 and hexadecimal of DER, base64 of PEM, bytes and lists of numbers are the same."""
    raw = der(genoa.certificate)
    text = pem(genoa)[0]
    forms: list[Any] = [
        raw,
        text,
        text.encode(),
        base64.b64encode(raw).decode(),
        raw.hex(),
        raw.hex().upper(),
        base64.b64encode(text.encode()).decode(),
        list(raw),
    ]
    for form in forms:
        assert SnpEndorsements.from_mapping({"vcek": form}) == SnpEndorsements(vcek=raw)


def test_forms_of_a_chain(genoa: Platform) -> None:
    """PEM of all, lists, Trustee's list, the answer of Azure's host and a certificate table are the same."""
    expected = genoa.endorsements()
    chain = pem(genoa)
    names = ("VCEK", "ASK", "ARK")
    typed: list[dict[str, Any]] = [
        {"cert_type": name, "data": list(base64.b64decode("".join(text.splitlines()[1:-1])))}
        for name, text in zip(names, chain, strict=True)
    ]
    other: dict[str, Any] = {"cert_type": {"OTHER": "00000000-0000-0000-0000-000000000000"}, "data": [1]}
    forms: list[dict[str, Any]] = [
        {"cert_chain": "".join(chain)},
        {"cert_chain": chain},
        {"vcek": "\n".join(chain)},
        {"cert-chain": [*typed, other]},
        {"vcekCert": chain[0], "tcbm": "DB18", "certificateChain": chain[1] + chain[2], "cacheControl": "1"},
        {
            "VCEK_pem": chain[0],
            "ask-cert": chain[1],
            "ark_der": base64.b64encode(expected.ark or b"").decode(),
        },
        {"ek": chain[0], "ask": chain[1], "ark": chain[2], "crl": None},
        {"auxblob": table_of(genoa)},
    ]
    for form in forms:
        assert SnpEndorsements.from_mapping(form) == expected


def test_certificate_goes_where_its_name_says(vlek: Platform) -> None:
    """AMD's KDS and others call the authority of VLEKs ASK too."""
    own = vlek.endorsements()
    mapping = {"ek": own.vlek, "ask": own.asvk, "ark": own.ark}
    assert SnpEndorsements.from_mapping(mapping) == own
    assert parse_endorsements("sev-snp", mapping) == own


@pytest.mark.parametrize(
    "mapping",
    [
        {"surprise": "x"},
        {"vcek": 7},
        {"cert_chain": [[[1]]]},
        {"vcek": ""},
        {"vcek": "not base64!"},
        {"vcek": "MIIB"},
        {"vcek": "-----BEGIN CERTIFICATE-----\nMIIB"},
        {"vcek": "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----"},
        {"cert_chain": [{"cert_type": "VCEK"}]},
        {"cert_chain": [[1, 2, 300]]},
        {"cert_chain": ["MIIB"] * 17},
        {"auxblob": "AAAA"},
        {"vcek": "A" * 600_000},
    ],
)
def test_unreadable_members(mapping: dict[str, Any]) -> None:
    """Unknown members and unreadable values are errors."""
    with pytest.raises(MalformedInput):
        SnpEndorsements.from_mapping(mapping)


def test_two_of_a_kind(genoa: Platform, turin: Platform) -> None:
    """Two different certificates of one kind are an error, the same one twice is not."""
    one, two = der(genoa.certificate), der(turin.certificate)
    assert SnpEndorsements.from_mapping({"vcek": one, "ek": one}).vcek == one
    with pytest.raises(MalformedInput, match="two different"):
        SnpEndorsements.from_mapping({"vcek": one, "ek": two})


def test_other_shapes() -> None:
    """Something that is not an object is an error."""
    with pytest.raises(MalformedInput):
        SnpEndorsements.from_mapping([])  # type: ignore[arg-type]


json_values = st.recursive(
    st.none() | st.integers() | st.text(max_size=40) | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["cert_type", "data"]), inner)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["vcek", "ask", "crl", "cert_chain", "auxblob", "ek"]), json_values))
def test_random_members(mapping: dict[str, Any]) -> None:
    """Random values raise nothing but MalformedInput."""
    try:
        SnpEndorsements.from_mapping(mapping)
    except MalformedInput:
        return
