"""NVIDIA's reference integrity manifests (RIM): golden measurements of one version of a driver or VBIOS.

====================================== =====================================================================
place in the XML                       content
====================================== =====================================================================
Meta, ``colloquialVersion``            version of the driver (``550.90.07``) or VBIOS (``96.00.9F.00.01``)
Meta, ``product``                      chip, for example ``GH100``
Payload, Resource, ``index``           RIM index; the SPDM index of the same measurement is one higher
- ``active``                           ``True`` if the measurement must match
- ``alternatives``, ``Hash0``, ...     the values of which the device must have one
- ``size``                             bytes of a value
Signature                              XML-DSIG by a chain that ends in NVIDIA's RIM root
====================================== =====================================================================

Source: TCG Reference Integrity Manifest Information Model 1.01; ISO/IEC 19770-2:2015; NVIDIA RIM service.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from cryptography import x509

from cloister.attest.nvidia.xml import Element, parse_xml
from cloister.attest.nvidia.xmldsig import open_signature
from cloister.attest.p384 import Chain, key_of, open_chain
from cloister.errors import MalformedInput

MAX_RIM_BYTES = 512 * 1024
SWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
HASH_NAMESPACE = "http://www.w3.org/2001/04/xmlenc#sha384"
MAX_INDEX = 253
MAX_ALTERNATIVES = 64
_HASH_BYTES = 48


@dataclass(frozen=True, slots=True)
class Rim:
    """A manifest whose signature has been verified, and whose certificates' dates have not."""

    version: str
    product: str
    golden: Mapping[int, tuple[bytes, ...]]
    """Acceptable values of each active measurement, by SPDM index."""
    chain: Chain


@lru_cache(maxsize=64)
def open_rim(xml: bytes, roots: tuple[x509.Certificate, ...], what: str) -> Rim:
    """The manifest in ``xml``, verified up to one of ``roots``.

    Raises:
        MalformedInput: not such a manifest.
        UntrustedRoot, BadSignature, EndorsementMismatch: its signature or chain does not hold.
    """
    if len(xml) > MAX_RIM_BYTES:
        raise MalformedInput(f"{what} has {len(xml)} bytes, at most {MAX_RIM_BYTES} are read")
    root = parse_xml(xml, what)
    if root.qualified != (SWID, "SoftwareIdentity"):
        raise MalformedInput(f"{what} is not a SoftwareIdentity tag")
    signature = open_signature(root, what)
    chain = open_chain(signature.certificates, roots, f"certificate chain of {what}")
    signature.verify(key_of(chain.leaf), what)
    meta = root.find(SWID, "Meta")
    return Rim(
        version=_required(meta, "colloquialVersion", what),
        product=meta.attribute("product") or "",
        golden=_golden(root.find(SWID, "Payload"), what),
        chain=chain,
    )


def _golden(payload: Element, what: str) -> Mapping[int, tuple[bytes, ...]]:
    golden: dict[int, tuple[bytes, ...]] = {}
    seen: set[int] = set()
    for resource in payload.elements():
        if resource.qualified != (SWID, "Resource") or resource.attribute("type") != "Measurement":
            raise MalformedInput(f"{what}: the payload holds something else than measurements")
        index = _number(resource, "index", MAX_INDEX, what)
        if index in seen:
            raise MalformedInput(f"{what}: measurement {index} occurs twice")
        seen.add(index)
        active = _required(resource, "active", what)
        if active not in ("True", "False"):
            raise MalformedInput(f"{what}: measurement {index} is neither active nor inactive")
        values = _values(resource, index, what)
        if active == "True":
            golden[index + 1] = values
    if not golden:
        raise MalformedInput(f"{what} has no active measurement")
    return MappingProxyType(golden)


def _values(resource: Element, index: int, what: str) -> tuple[bytes, ...]:
    count = _number(resource, "alternatives", MAX_ALTERNATIVES, what)
    size = _number(resource, "size", _HASH_BYTES, what)
    values = []
    for alternative in range(count):
        text = _required(resource, f"Hash{alternative}", what, HASH_NAMESPACE)
        try:
            value = bytes.fromhex(text)
        except ValueError as error:
            raise MalformedInput(f"{what}: a hash of measurement {index} is not hexadecimal") from error
        if len(value) != size or size != _HASH_BYTES:
            raise MalformedInput(f"{what}: a hash of measurement {index} has not {_HASH_BYTES} bytes")
        values.append(value)
    if not values or resource.attribute(f"Hash{count}", HASH_NAMESPACE) is not None:
        raise MalformedInput(f"{what}: measurement {index} has not {count} alternatives, or none")
    return tuple(values)


def _number(element: Element, name: str, maximum: int, what: str) -> int:
    text = _required(element, name, what)
    if not (text.isascii() and text.isdecimal() and len(text) <= 3 and int(text) <= maximum):
        raise MalformedInput(f"{what}: {name} is {text[:20]!r}, expected 0 to {maximum}")
    return int(text)


def _required(element: Element, name: str, what: str, namespace: str = "") -> str:
    value = element.attribute(name, namespace)
    if value is None:
        raise MalformedInput(f"{what}: {element.name[:40]!r} has no {name}")
    return value
