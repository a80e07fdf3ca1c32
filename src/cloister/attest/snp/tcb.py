"""Products, and the layout of a TCB version: eight bytes, one security version per component.

====== ================ ==========
byte   Milan and Genoa  Turin
====== ================ ==========
0      bootloader       fmc
1      tee              bootloader
2      (spl_4)          tee
3      (spl_5)          snp
4      (spl_6)          (spl_5)
5      (spl_7)          (spl_6)
6      snp              (spl_7)
7      microcode        microcode
====== ================ ==========

AMD reserves the components in parentheses; they are zero so far.

Source: AMD 56860 revision 1.58, TCB_VERSION; AMD 57230 (VCEK Certificate and KDS Interface), revision 1.00.
"""

from __future__ import annotations

from cloister.errors import MalformedInput

COMPONENTS = ("fmc", "bootloader", "tee", "snp", "microcode")
PRODUCTS = ("Milan", "Genoa", "Turin")
"""Product lines, one root key each. Siena and Bergamo are of the Genoa line."""
_BEFORE_TURIN = ("bootloader", "tee", "spl_4", "spl_5", "spl_6", "spl_7", "snp", "microcode")
_TURIN = ("fmc", "bootloader", "tee", "snp", "spl_5", "spl_6", "spl_7", "microcode")
_LINES = {"Milan": "Milan", "Genoa": "Genoa", "Siena": "Genoa", "Bergamo": "Genoa", "Turin": "Turin"}
_ZEN_3_AND_4, _ZEN_5 = 0x19, 0x1A


def tcb_layout(product: str) -> tuple[str, ...]:
    """Names of the eight components of a TCB version, in the order of their bytes."""
    return _TURIN if product == "Turin" else _BEFORE_TURIN


def decode_tcb(raw: bytes, product: str) -> dict[str, int]:
    """The components of a TCB version; reserved ones are left out."""
    return {name: raw[at] for at, name in enumerate(tcb_layout(product)) if name in COMPONENTS}


def encode_tcb(components: dict[str, int], product: str) -> bytes:
    """The eight bytes of a TCB version; components that are not given are zero."""
    return bytes(components.get(name, 0) for name in tcb_layout(product))


def product_of_name(name: str) -> str:
    """Product line of a certificate's product name, such as ``Milan-B0``; MalformedInput if unknown."""
    line = _LINES.get(name.split("-", 1)[0])
    if line is None:
        raise MalformedInput(f"unknown AMD product {name[:40]!r}, known lines are {', '.join(PRODUCTS)}")
    return line


def product_of_cpuid(family: int, model: int) -> str | None:
    """Product line of a processor; None if it is none of the known ones."""
    if family == _ZEN_3_AND_4 and model <= 0x0F:
        return "Milan"
    if family == _ZEN_3_AND_4 and (0x10 <= model <= 0x1F or 0xA0 <= model <= 0xAF):
        return "Genoa"
    if family == _ZEN_5 and model <= 0x1F:
        return "Turin"
    return None
