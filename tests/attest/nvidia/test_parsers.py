"""The parsers of reports, evidence, XML and manifests: each restriction broken once, and random input."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attest.nvidia import NvidiaEndorsements, split_devices
from cloister.attest.nvidia.evidence import parse_evidence
from cloister.attest.nvidia.report import Report, parse_report
from cloister.attest.nvidia.rim import open_rim
from cloister.attest.nvidia.xml import canonicalize, parse_xml
from cloister.errors import MalformedInput, VerificationError
from tests.fakes.nvidia import DRIVER, GOLDEN_DRIVER, MEASUREMENTS, OPAQUE, FakeNvidia, sign_xml

DECLARED = (VerificationError, MalformedInput)
VENDOR = FakeNvidia()
GPU = VENDOR.gpu()
REPORT = GPU.report()
RIM = VENDOR.rim(DRIVER, GOLDEN_DRIVER)


def changed(at: int, value: int) -> bytes:
    """The report with another byte."""
    return REPORT[:at] + bytes([value]) + REPORT[at + 1 :]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        REPORT[:44],
        REPORT[:-1],
        REPORT + b"\x01",
        REPORT + b"\x00\x00",
        changed(0, 0x12),
        changed(1, 0xE1),
        changed(2, 0),
        changed(3, 1),
        changed(37, 0x12),
        changed(38, 0xE0),
        changed(41, 7),
        changed(42, 0),
        changed(44, 0xFF),
        changed(45, 0),
        changed(45, 2),
        changed(46, 2),
        changed(47, 50),
        changed(50, 49),
        GPU.report(measurements={1: bytes(65)}),
        bytes(70_000),
    ],
)
def test_report_structure(raw: bytes) -> None:
    """Another version, code, length, count, index or trailing byte is malformed."""
    with pytest.raises(MalformedInput):
        parse_report(raw)


def test_report_fields() -> None:
    """Fields are read by type; unknown ones keep their number, and double ones are refused."""
    report = parse_report(GPU.report(opaque=OPAQUE | {99: b"x", 15: b"882\0\0", 19: b"\0\0"}))
    assert report.opaque["type_99"] == b"x"
    assert (report.opaque_text("chip_sku"), report.opaque_text("project_sku_mod")) == ("882", "0000")
    assert report.measurements == MEASUREMENTS
    opaque = REPORT.index(b"\x03\x00\x07\x00")
    twice = REPORT[:opaque] + b"\x06" + REPORT[opaque + 1 :]
    with pytest.raises(MalformedInput):
        parse_report(twice)


@pytest.mark.parametrize(
    ("kind", "value", "name"),
    [(3, b"\xff\0", "driver_version"), (3, b"1\n0\0", "driver_version"), (6, b"123", "vbios_version")],
)
def test_versions(kind: int, value: bytes, name: str) -> None:
    """A version that is not printable, or not of the right length, is malformed."""
    report = parse_report(GPU.report(opaque=OPAQUE | {kind: value}))
    with pytest.raises(MalformedInput):
        getattr(report, name)


def test_switch() -> None:
    """A report without a driver's version is a switch's; its BIOS version is text."""
    report = parse_report(GPU.report(opaque={6: b"96.10.55.00.01"}))
    assert isinstance(report, Report)
    assert report.is_switch
    assert (report.driver_version, report.vbios_version) == ("", "96.10.55.00.01")


@given(st.binary(max_size=300), st.booleans())
def test_random_reports(tail: bytes, head: bool) -> None:
    """Random bytes, also after a good beginning, are malformed."""
    with pytest.raises(MalformedInput):
        parse_report(REPORT[:45] + tail if head else tail)


DEVICE = {"evidence": REPORT.hex(), "certificate": "".join(holder.pem.decode() for holder in GPU.chain)}


@pytest.mark.parametrize(
    "document",
    [
        [],
        [1],
        "text",
        {},
        {"evidence": 1},
        {"evidence": "zz!"},
        DEVICE | {"nonce": "00"},
        DEVICE | {"nonce": "zz!"},
        DEVICE | {"arch": []},
        DEVICE | {"certificate": "é-----BEGIN"},
        DEVICE | {"certificate": "A" * 100_000},
        {"device_evidence_list": {}},
        {"device_evidence_list": [DEVICE] * 33},
    ],
    ids=lambda value: str(value)[:40],
)
def test_evidence_structure(document: Any) -> None:
    """JSON of another shape is malformed."""
    with pytest.raises(MalformedInput):
        parse_evidence(json.dumps(document, ensure_ascii=False).encode())


def test_split_devices() -> None:
    """A list of devices is taken apart into evidence of one device each."""
    raw = json.dumps([DEVICE, DEVICE | {"arch": "HOPPER"}]).encode()
    first, second = split_devices(raw)
    assert parse_evidence(first).report == REPORT
    assert parse_evidence(second).arch == "HOPPER"
    with pytest.raises(MalformedInput):
        parse_evidence(raw)


@given(st.dictionaries(st.sampled_from(["certificate", "ocsp", "driver_rim", "x"]), st.text() | st.none()))
def test_random_endorsements(mapping: dict[str, Any]) -> None:
    """Random endorsements are read or malformed."""
    try:
        NvidiaEndorsements.from_mapping(mapping)
    except MalformedInput:
        return


def canonical(text: str) -> str:
    """Canonical form of a document."""
    return canonicalize(parse_xml(text.encode(), "test")).decode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<a/>", "<a></a>"),
        ("<?xml version='1.0'?>\n<a>\r\n</a>\n", "<a>\n</a>"),
        ("<a  c='1'  b=\"2\" />", '<a b="2" c="1"></a>'),
        ("<a b='&lt;&quot;&#x9;&#xA;&#xD;&amp;>'/>", '<a b="&lt;&quot;&#x9;&#xA;&#xD;&amp;>"></a>'),
        ("<a>&lt;&gt;&amp;&#xD;<![CDATA[<]]></a>", "<a>&lt;&gt;&amp;&#xD;&lt;</a>"),
        ("<a xmlns:z='u' xmlns='v' xmlns:b='w'/>", '<a xmlns="v" xmlns:b="w" xmlns:z="u"></a>'),
        ("<a xmlns='u'><b xmlns='u'/></a>", '<a xmlns="u"><b></b></a>'),
        ("<a xmlns='u'><b xmlns=''/></a>", '<a xmlns="u"><b xmlns=""></b></a>'),
        ("<a><b xmlns=''/></a>", "<a><b></b></a>"),
        (
            "<a xmlns:p='z' xmlns:q='y' p:x='1' q:x='2' x='3'/>",
            '<a xmlns:p="z" xmlns:q="y" x="3" q:x="2" p:x="1"></a>',
        ),
    ],
)
def test_canonical_form(text: str, expected: str) -> None:
    """Order, escapes, line ends and namespaces are those of Canonical XML."""
    assert canonical(text) == expected


def test_canonical_part() -> None:
    """A part shows every namespace that is in scope, and an element can be left out."""
    root = parse_xml(b"<a xmlns='u' xmlns:p='v'>x<b><c/></b>y</a>", "test")
    part = root.find("u", "b")
    assert canonicalize(part) == b'<b xmlns="u" xmlns:p="v"><c></c></b>'
    assert canonicalize(root, without=part) == b'<a xmlns="u" xmlns:p="v">xy</a>'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<a>",
        "<a/><b/>",
        "<a><!-- c --></a>",
        "<a><?p i?></a>",
        "<!DOCTYPE a><a/>",
        "<!DOCTYPE a [<!ENTITY e 'x'>]><a>&e;</a>",
        "<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a/>",
        "<p:a/>",
        "<a p:b='1'/>",
        "<a xml:lang='en'/>",
        "<a xmlns:p=''/>",
        "<a xmlns:p='u' xmlns:q='u' p:x='1' q:x='2'/>",
        "<a b='1' b='2'/>",
        "<a>" * 20 + "</a>" * 20,
        f"<a>{'<b/>' * 5000}</a>",
    ],
    ids=lambda text: text[:30],
)
def test_refused_xml(text: str) -> None:
    """Entities, comments, instructions, undeclared prefixes, depth and size are refused."""
    with pytest.raises(MalformedInput):
        parse_xml(text.encode(), "test")


@settings(max_examples=200)
@given(st.text(alphabet="<>/ab:=\"'&;!-?x ", max_size=60))
def test_random_xml(text: str) -> None:
    """Random text is read or malformed; what is read has a canonical form that stays the same."""
    try:
        form = canonicalize(parse_xml(text.encode(), "test"))
    except MalformedInput:
        return
    assert canonicalize(parse_xml(form, "test")) == form


def rim_with(old: str, new: str) -> bytes:
    """A manifest with other content, signed again."""
    text = RIM.decode()
    begin = text[: text.index("<ds:Signature ")]
    assert old in begin
    return sign_xml(begin.replace(old, new, 1), "</SoftwareIdentity>", VENDOR.rim_chain)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("colloquialVersion", "version"),
        ("n:Meta", "n:Data"),
        ("</n:Payload>", "</n:Payload><n:Payload/>"),
        ("n:Resource", "n:Other"),
        ('type="Measurement"', 'type="File"'),
        ('index="1"', 'index="3"'),
        ('index="1"', 'index="254"'),
        ('index="1"', 'index="-1"'),
        ('index="1"', ""),
        ('active="True"', 'active="maybe"'),
        ('alternatives="1"', 'alternatives="0"'),
        ('alternatives="1"', 'alternatives="2"'),
        ('size="48"', 'size="32"'),
        ("02020202", "0202020g"),
        ("02020202", "020202"),
        ('size="48"', 'size="48" h:Hash1="00"'),
        ("schema.xsd", "other.xsd"),
    ],
)
def test_manifest_structure(old: str, new: str) -> None:
    """A signed manifest of another form is malformed."""
    raw = rim_with(old, new)
    with pytest.raises(MalformedInput):
        open_rim(raw, (VENDOR.root,), "manifest")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("xmldsig-more#ecdsa-sha384", "xmldsig-more#ecdsa-sha256"),
        ("xmldsig-more#sha384", "xmlenc#sha256"),
        ("2006/12/xml-c14n11", "2001/10/xml-exc-c14n#"),
        ('URI=""', 'URI="#x"'),
        ("enveloped-signature", "base64"),
        ("<ds:DigestValue>", "<ds:DigestValue>!"),
        ("<ds:KeyInfo>", "<ds:KeyInfo>text"),
        ("<ds:X509Data>", "<ds:X509Data><ds:X509Certificate>AA==</ds:X509Certificate>"),
        ("<ds:Signature ", "<ds:Signature xmlns:ds='http://www.w3.org/2000/09/xmldsig#'/><ds:Signature "),
        ("<ds:SignatureValue>", "<ds:SignatureValue>AAAA"),
        ("n:Meta product", "n:Meta x='1' product"),
    ],
)
def test_signature_profile(old: str, new: str) -> None:
    """Another algorithm, reference, transform or structure, and a changed document, are refused."""
    text = RIM.decode()
    assert old in text
    with pytest.raises(DECLARED):
        open_rim(text.replace(old, new, 1).encode(), (VENDOR.root,), "manifest")


def test_wrapped_signature() -> None:
    """A good document inside another one is refused: the signature must be of what is read."""
    forged = RIM.decode().replace('index="1"', 'index="9"', 1)
    head, tail = forged.split("<ds:Signature ", 1)[0], "</SoftwareIdentity>"
    for raw in (f"{head}{RIM.decode()}{tail}", f"<x>{RIM.decode()}</x>"):
        with pytest.raises(DECLARED):
            open_rim(raw.encode(), (VENDOR.root,), "manifest")
    with pytest.raises(MalformedInput, match="at most"):
        open_rim(RIM + b" " * 600_000, (VENDOR.root,), "manifest")
