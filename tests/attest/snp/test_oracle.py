"""An outside opinion: the package omne-attest agrees on every report that it can judge.

It knows the layout of Milan and Genoa only, and does not look at the bytes of a report that are neither
signed nor part of r and s; there Cloister is stricter.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attest.snp.roots import amd_authority, amd_roots
from cloister.attest.snp.tcb import PRODUCTS
from cloister.errors import CloisterError
from tests.attest.snp.test_vectors import GENUINE, MUTATIONS, REPORTS, Case, _file, mutate, read

omne_attest: Any = pytest.importorskip(
    "omne_attest", reason="omne-attest, an outside oracle, is not installed"
)

UNREAD = {"sig_r_pad_nonzero(bytes 48..71)", "sig_reserved_tail_nonzero"}
"""Mutations of bytes that omne-attest does not read."""


def product_of(entry: dict[str, Any]) -> str:
    """Product line that the manifest states."""
    return str(entry["expected"]["endorsement_chain"].split("(")[1].rstrip(")").capitalize())


JUDGED = [
    entry
    for entry in GENUINE
    if product_of(entry) != "Turin" and "VCEK" in entry["expected"]["endorsement_chain"]
]


def accepts(raw: bytes, certificate: bytes, product: str) -> bool:
    """Whether omne-attest calls the report genuine."""
    ask = amd_authority(product, "vcek").public_bytes(Encoding.DER)
    ark = amd_roots()[PRODUCTS.index(product)].public_bytes(Encoding.DER)
    policy = omne_attest.Policy(max_vmpl=3, reject_debug=False)
    try:
        omne_attest.verify(raw, certificate, ask, ark, hashlib.sha256(ark).digest(), policy)
    except omne_attest.Fail:
        return False
    return True


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@pytest.mark.parametrize("entry", JUDGED, ids=_file)
def test_genuine_reports(entry: dict[str, Any]) -> None:
    """Both call each genuine report genuine, and the same one with another chip's certificate not."""
    case = Case(entry)
    case.verify()
    assert accepts(case.raw, case.certificate, product_of(entry))
    other = next(own for own in JUDGED if read(own["endorsement_cert"]) != case.certificate)
    assert not accepts(case.raw, read(other["endorsement_cert"]), product_of(entry))


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@pytest.mark.parametrize("entry", MUTATIONS, ids=_file)
def test_mutations(entry: dict[str, Any]) -> None:
    """Both refuse each listed mutation, but for those of bytes that omne-attest does not read."""
    document = json.loads(read(entry["file"]))
    base = next(own for own in REPORTS if own["file"] == document["base"])
    case = Case(base)
    for mutation in document["mutations"]:
        raw = mutate(case.raw, mutation["ops"])
        with pytest.raises(CloisterError):
            case.verify(raw)
        assert accepts(raw, case.certificate, product_of(base)) == (mutation["name"] in UNREAD)
