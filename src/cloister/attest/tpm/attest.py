"""TPMS_ATTEST: what a TPM signs when it quotes its PCRs.

Integers are big-endian; TPM2B is a u16 size and as many bytes.

===================== ============== ===========================================================
field                 type           meaning
===================== ============== ===========================================================
magic                 u32            0xFF544347: made by a TPM, not from outside
type                  u16            0x8018: quote
qualifiedSigner       TPM2B_NAME     name of the key and its ancestors; at most 66 bytes
extraData             TPM2B_DATA     the caller's nonce; at most 66 bytes
clockInfo.clock       u64            milliseconds that the TPM has been powered
clockInfo.resetCount  u32            raised by each TPM reset
clockInfo.restartCount u32           raised by each restart or resume since
clockInfo.safe        u8             0 or 1: no higher clock can have been reported before
firmwareVersion       u64            vendor's
pcrSelect             TPML           u32 count; each u16 hash, u8 size (1 to 8), bitmap
pcrDigest             TPM2B_DIGEST   hash over the selected PCRs, in the order of the selection
===================== ============== ===========================================================

Source: TCG Trusted Platform Module Library 2.0, part 2, revision 1.59, sections 10.12.8 and 10.9.7.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloister.attest.tpm.algorithms import hash_name
from cloister.attest.tpm.reader import Reader
from cloister.errors import MalformedInput

MAGIC = 0xFF544347
TYPE_QUOTE = 0x8018
MAX_ATTEST_BYTES = 1024
MAX_BUFFER_BYTES = 66
MAX_SELECTIONS = 16
MAX_BITMAP_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmsAttest:
    """The parts of a quote's message; nothing in it has been verified."""

    qualified_signer: bytes
    extra_data: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    selection: tuple[tuple[str, tuple[int, ...]], ...]
    """Banks in the order of the message, each with its PCRs in rising order."""
    pcr_digest: bytes

    @property
    def selected(self) -> tuple[tuple[str, int], ...]:
        """Bank and number of each selected PCR, in the order in which they are hashed."""
        return tuple((bank, index) for bank, indices in self.selection for index in indices)


def parse_attest(raw: bytes) -> TpmsAttest:
    """Cut a quote's message into its parts.

    Raises:
        MalformedInput: not a quote, a length that does not fit exactly, or a PCR that is selected twice.
    """
    if len(raw) > MAX_ATTEST_BYTES:
        raise MalformedInput(f"TPM quote has {len(raw)} bytes, at most {MAX_ATTEST_BYTES} are read")
    reader = Reader(raw, "TPM quote")
    magic, kind = reader.number(4, "magic"), reader.number(2, "type")
    if magic != MAGIC:
        raise MalformedInput(f"TPM quote: magic {magic:#x}, expected {MAGIC:#x}")
    if kind != TYPE_QUOTE:
        raise MalformedInput(f"TPM attestation of type {kind:#x}, expected {TYPE_QUOTE:#x} (quote)")
    qualified_signer = reader.sized("qualified signer", MAX_BUFFER_BYTES)
    extra_data = reader.sized("extra data", MAX_BUFFER_BYTES)
    clock = reader.number(8, "clock")
    reset_count, restart_count = reader.number(4, "reset count"), reader.number(4, "restart count")
    safe = reader.number(1, "safe")
    if safe > 1:
        raise MalformedInput(f"TPM quote: safe is {safe}, expected 0 or 1")
    firmware_version = reader.number(8, "firmware version")
    selection = read_selection(reader)
    pcr_digest = reader.sized("PCR digest", 64)
    reader.finish()
    return TpmsAttest(
        qualified_signer=qualified_signer,
        extra_data=extra_data,
        clock=clock,
        reset_count=reset_count,
        restart_count=restart_count,
        safe=bool(safe),
        firmware_version=firmware_version,
        selection=selection,
        pcr_digest=pcr_digest,
    )


def read_selection(reader: Reader) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """A TPML_PCR_SELECTION: banks, each with the PCRs selected in it."""
    count = reader.number(4, "number of PCR selections")
    if count > MAX_SELECTIONS:
        raise MalformedInput(f"TPM quote has {count} PCR selections, at most {MAX_SELECTIONS} are allowed")
    selection: list[tuple[str, tuple[int, ...]]] = []
    for _ in range(count):
        bank = hash_name(reader.number(2, "PCR bank"))
        size = reader.number(1, "size of PCR bitmap")
        if not 0 < size <= MAX_BITMAP_BYTES:
            raise MalformedInput(f"TPM quote: PCR bitmap of {size} bytes, expected 1 to {MAX_BITMAP_BYTES}")
        if bank in dict(selection):
            raise MalformedInput(f"TPM quote selects the bank {bank} twice")
        selection.append((bank, bits_of(reader.take(size, "PCR bitmap"))))
    return tuple(selection)


def bits_of(bitmap: bytes) -> tuple[int, ...]:
    """Numbers of the PCRs that a bitmap selects."""
    return tuple(
        8 * position + bit for position, byte in enumerate(bitmap) for bit in range(8) if byte >> bit & 1
    )
