"""What a VCEK or VLEK certificate says of the processor: AMD's X.509 extensions.

======================= =========== =================================================================
object identifier       type        meaning
======================= =========== =================================================================
1.3.6.1.4.1.3704.1.1    integer     structure version: 0 or 1
.1.2                    IA5 string  product name, such as ``Milan-B0``, ``Genoa``, ``Turin``
.1.3.1                  integer     boot loader
.1.3.2                  integer     TEE
.1.3.3                  integer     SNP firmware
.1.3.4 to .1.3.7        integer     reserved components spl_4 to spl_7
.1.3.8                  integer     microcode
.1.3.9                  integer     FMC, Turin only
.1.4                    raw bytes   hardware id: 64 bytes, Turin 8 (VCEK only); an octet string in some
.1.5                    IA5 string  cloud service provider (VLEK only)
======================= =========== =================================================================

Source: AMD 57230 (VCEK Certificate and KDS Interface) revision 1.00, section 3.1, tables 8 and 9.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509

from cloister.attest.snp.certificate import Certificate
from cloister.attest.snp.tcb import encode_tcb, product_of_name, tcb_layout
from cloister.errors import EndorsementMismatch, MalformedInput

ARC = "1.3.6.1.4.1.3704.1"
TCB_ARCS = {
    "bootloader": "3.1",
    "tee": "3.2",
    "snp": "3.3",
    "spl_4": "3.4",
    "spl_5": "3.5",
    "spl_6": "3.6",
    "spl_7": "3.7",
    "microcode": "3.8",
    "fmc": "3.9",
}
SUBJECTS = {"SEV-VCEK": "vcek", "SEV-VLEK": "vlek"}
_INTEGER, _OCTETS, _IA5_STRING = 0x02, 0x04, 0x16


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyExtensions:
    """The processor, or provider, that an endorsement key is of."""

    kind: str
    """``vcek`` (of one chip) or ``vlek`` (of one cloud provider)."""
    product: str
    """Product line: Milan, Genoa or Turin."""
    product_name: str
    tcb: bytes
    """The eight bytes of a TCB version."""
    hwid: bytes
    """Identity of the chip; empty for a VLEK."""
    csp_id: str
    """Identity of the provider; empty for a VCEK."""


def parse_extensions(certificate: Certificate) -> KeyExtensions:
    """AMD's extensions of a VCEK or VLEK certificate.

    Raises:
        MalformedInput: one is missing, or not of its type and size.
        EndorsementMismatch: the certificate is of another kind.
    """
    kind = SUBJECTS.get(certificate.name)
    if kind is None:
        raise EndorsementMismatch(
            f"endorsement key certificate is of {certificate.name!r}, expected SEV-VCEK or SEV-VLEK"
        )
    values = {
        extension.oid.dotted_string.removeprefix(f"{ARC}."): extension.value.value
        for extension in certificate.parsed.extensions
        if isinstance(extension.value, x509.UnrecognizedExtension)
    }
    product_name = _ia5(values, "2", "product name")
    product = product_of_name(product_name)
    tcb = _tcb(values, product)
    hwid = _hardware_id(values, product) if kind == "vcek" else b""
    csp_id = _ia5(values, "5", "provider") if kind == "vlek" else ""
    unexpected = "4" if kind == "vlek" else "5"
    if unexpected in values:
        raise MalformedInput(f"{kind.upper()} certificate has the extension {ARC}.{unexpected}")
    return KeyExtensions(
        kind=kind, product=product, product_name=product_name, tcb=tcb, hwid=hwid, csp_id=csp_id
    )


def _tcb(values: dict[str, bytes], product: str) -> bytes:
    layout = tcb_layout(product)
    foreign = [name for name, arc in TCB_ARCS.items() if arc in values and name not in layout]
    # Turin has no byte for spl_4, but its certificates may carry the extension.
    if [name for name in foreign if name != "spl_4" or _integer(values, TCB_ARCS[name])]:
        raise MalformedInput(f"certificate has the TCB component {foreign[0]}, which {product} has not")
    components = {
        name: _integer(values, TCB_ARCS[name])
        for name in layout
        if not name.startswith("spl_") or TCB_ARCS[name] in values
    }
    return encode_tcb(components, product)


def _hardware_id(values: dict[str, bytes], product: str) -> bytes:
    size = 8 if product == "Turin" else 64
    raw = _value(values, "4", "hardware id")
    if len(raw) == size + 2 and raw[:2] == bytes([_OCTETS, size]):
        raw = raw[2:]
    if len(raw) != size:
        raise MalformedInput(f"VCEK certificate: hardware id has {len(raw)} bytes, expected {size}")
    return raw


def _integer(values: dict[str, bytes], arc: str) -> int:
    raw = _value(values, arc, "TCB component")
    if len(raw) in (3, 4) and raw[:2] == bytes([_INTEGER, len(raw) - 2]):
        number = int.from_bytes(raw[2:], "big", signed=True)
        if 0 <= number <= 0xFF:
            return number
    raise MalformedInput(f"certificate extension {ARC}.{arc} is not a number from 0 to 255")


def _ia5(values: dict[str, bytes], arc: str, what: str) -> str:
    raw = _value(values, arc, what)
    if len(raw) < 3 or raw[:2] != bytes([_IA5_STRING, len(raw) - 2 & 0x7F]) or not raw.isascii():
        raise MalformedInput(f"certificate extension {ARC}.{arc} ({what}) is not a short ASCII string")
    return raw[2:].decode("ascii")


def _value(values: dict[str, bytes], arc: str, what: str) -> bytes:
    if arc not in values:
        raise MalformedInput(f"certificate has no extension {ARC}.{arc} ({what})")
    return values[arc]
