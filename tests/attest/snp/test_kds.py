"""Addresses of AMD's Key Distribution Service."""

from __future__ import annotations

import pytest

from cloister.attest.snp.kds import chain_url, crl_url, products_of, vcek_url
from cloister.attest.snp.report import parse_report
from cloister.errors import MalformedInput
from tests.attest.snp.conftest import HWID, Platform


def test_address_of_a_vcek(genoa: Platform, turin: Platform) -> None:
    """The address names chip and reported TCB; Turin's has FMC and the short identity."""
    assert vcek_url(parse_report(genoa.report()), "Genoa") == (
        f"https://kdsintf.amd.com/vcek/v1/Genoa/{HWID.hex()}?blSPL=04&teeSPL=02&snpSPL=24&ucodeSPL=219"
    )
    assert vcek_url(parse_report(turin.report()), "Turin", base="http://127.0.0.1:1/") == (
        f"http://127.0.0.1:1/vcek/v1/Turin/{HWID[:8].hex()}"
        "?fmcSPL=01&blSPL=04&teeSPL=02&snpSPL=24&ucodeSPL=219"
    )


def test_other_addresses() -> None:
    """Chains and lists are per product and kind of key."""
    assert chain_url("Milan", "vlek") == "https://kdsintf.amd.com/vlek/v1/Milan/cert_chain"
    assert crl_url("Turin", "vcek") == "https://kdsintf.amd.com/vcek/v1/Turin/crl"


def test_products(genoa: Platform, turin: Platform) -> None:
    """A report names its product, or in version 2 leaves those that fit."""
    assert products_of(parse_report(genoa.report())) == ("Genoa",)
    assert products_of(parse_report(genoa.report(version=2))) == ("Milan", "Genoa")
    assert products_of(parse_report(turin.report(version=2))) == ("Turin",)
    raw = genoa.report()
    with pytest.raises(MalformedInput, match="unknown processor"):
        products_of(parse_report(raw[:0x188] + b"\x17\x31\x00" + raw[0x18B:]))


def test_no_address(genoa: Platform, vlek: Platform) -> None:
    """AMD's service has no VLEKs, and finds no chip that is masked."""
    with pytest.raises(MalformedInput):
        vcek_url(parse_report(vlek.report()), "Milan")
    with pytest.raises(MalformedInput):
        vcek_url(parse_report(genoa.report({"chip_id": b""})), "Genoa")
