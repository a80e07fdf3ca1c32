"""The firmware identity (FWID) that a device's certificate states, in the two forms that NVIDIA uses.

=================== ============ ========================================================================
extension           devices      content
=================== ============ ========================================================================
2.23.133.5.4.1      Hopper, LS10 CompositeDeviceID: version 1, device's SubjectPublicKeyInfo, one FWID
2.23.133.5.4.1.1    Blackwell    DiceTcbInfo: FWIDs are the list in its member [6]
=================== ============ ========================================================================

An FWID is a sequence of hash algorithm (SHA-384) and digest (48 bytes).

Source: TCG DICE Attestation Architecture, version 1.00 revision 0.22, sections 6.1.1 and 6.1.2; TCG
Implicit Identity Based Device Attestation, revision 0.93.
"""

from __future__ import annotations

from collections.abc import Iterator

from cryptography import x509

from cloister.attest.nvidia.report import FWID_BYTES
from cloister.attest.p384 import spki
from cloister.errors import EndorsementMismatch, MalformedInput

COMPOSITE_DEVICE_ID = x509.ObjectIdentifier("2.23.133.5.4.1")
DICE_TCB_INFO = x509.ObjectIdentifier("2.23.133.5.4.1.1")
_SEQUENCE, _INTEGER, _OCTETS, _OBJECT_ID, _FWIDS = 0x30, 0x02, 0x04, 0x06, 0xA6
_SHA384 = bytes.fromhex("608648016503040202")


def fwids_of(certificate: x509.Certificate, device: x509.Certificate) -> tuple[bytes, ...]:
    """The FWIDs in a leaf certificate, without those that are all zeros.

    Args:
        device: certificate of the device's own key, which issued ``certificate``.
    Raises:
        MalformedInput: it has none of the extensions, or one in another form.
        EndorsementMismatch: it states the identity of another device.
    """
    found: list[bytes] = []
    if (der := _extension(certificate, COMPOSITE_DEVICE_ID)) is not None:
        key, fwid = _composite_device_id(der)
        if key != spki(device):
            raise EndorsementMismatch("NVIDIA certificate states the identity of another device")
        found.append(fwid)
    if (der := _extension(certificate, DICE_TCB_INFO)) is not None:
        found.extend(_dice_tcb_info(der))
    if not any(map(any, found)):
        raise MalformedInput("NVIDIA certificate has no TCG extension with a firmware identity")
    return tuple(fwid for fwid in found if any(fwid))


def _extension(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> bytes | None:
    try:
        extension = certificate.extensions.get_extension_for_oid(oid).value
    except x509.ExtensionNotFound:
        return None
    if not isinstance(extension, x509.UnrecognizedExtension):
        raise MalformedInput("NVIDIA certificate: the TCG extension is of an unknown kind")
    return extension.value


def _composite_device_id(der: bytes) -> tuple[bytes, bytes]:
    content = _only(der, _SEQUENCE)
    members = list(_elements(content))
    if [tag for tag, _, _ in members] != [_INTEGER, _SEQUENCE, _SEQUENCE]:
        raise MalformedInput("NVIDIA certificate: CompositeDeviceID does not have its three members")
    return members[1][2], _fwid(members[2][1])


def _dice_tcb_info(der: bytes) -> Iterator[bytes]:
    for tag, content, _ in _elements(_only(der, _SEQUENCE)):
        if tag == _FWIDS:
            for inner, fwid, _ in _elements(content):
                if inner != _SEQUENCE:
                    raise MalformedInput("NVIDIA certificate: an FWID is not a sequence")
                yield _fwid(fwid)


def _fwid(content: bytes) -> bytes:
    members = list(_elements(content))
    if [tag for tag, _, _ in members] != [_OBJECT_ID, _OCTETS]:
        raise MalformedInput("NVIDIA certificate: an FWID is not algorithm and digest")
    if members[0][1] != _SHA384 or len(members[1][1]) != FWID_BYTES:
        raise MalformedInput("NVIDIA certificate: an FWID is not SHA-384")
    return members[1][1]


def _only(der: bytes, tag: int) -> bytes:
    elements = list(_elements(der))
    if len(elements) != 1 or elements[0][0] != tag:
        raise MalformedInput(f"NVIDIA certificate: TCG extension is not one element of tag {tag:#x}")
    return elements[0][1]


def _elements(der: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Tag, content, and the whole of each element; lengths of up to two bytes, as an extension needs."""
    at = 0
    while at < len(der):
        head = der[at : at + 4]
        if len(head) < 2 or head[0] & 0x1F == 0x1F:
            raise MalformedInput("NVIDIA certificate: TCG extension is not DER")
        size, begin = head[1], at + 2
        if size in (0x81, 0x82):
            begin += size - 0x80
            size = int.from_bytes(der[at + 2 : begin], "big")
        elif size > 0x7F:
            raise MalformedInput("NVIDIA certificate: TCG extension has a length that is not read here")
        start, at = at, begin + size
        if at > len(der):
            raise MalformedInput("NVIDIA certificate: TCG extension ends inside an element")
        yield head[0], der[begin:at], der[start:at]
