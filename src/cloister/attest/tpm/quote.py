"""Is one TPM quote genuine? Signature by the attestation key, and PCR values that hash to its digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloister.attest.tpm.algorithms import DIGEST_BYTES, digest
from cloister.attest.tpm.attest import TpmsAttest, parse_attest
from cloister.attest.tpm.keys import AttestationKey
from cloister.attest.tpm.signature import parse_signature, verify_signature
from cloister.errors import BindingMismatch, MalformedInput

PcrBanks = dict[str, dict[int, bytes]]
PCRS = 24


@dataclass(frozen=True, slots=True)
class QuotePart:
    """One quote as evidence holds it."""

    message: bytes
    """TPMS_ATTEST."""
    signature: bytes
    pcrs: tuple[bytes, ...] | Mapping[str, Mapping[int, bytes]] | None
    """Values in the order of the selection, or PCR 0 to 23 of its one bank; or by bank and number; or none,
    where only the digest was handed on."""


@dataclass(frozen=True, slots=True)
class VerifiedTpmQuote:
    """A genuine quote, and the PCRs that it speaks of. Values that it does not speak of are left out."""

    attest: TpmsAttest
    pcrs: PcrBanks


def verify_tpm_quote(part: QuotePart, key: AttestationKey) -> VerifiedTpmQuote:
    """Establish that ``key`` quoted these PCR values.

    1. The message has its form, exactly.
    2. ``key`` signed it.
    3. The PCR values hash to its digest, in the order of its selection, with the hash of the signature.

    Raises:
        MalformedInput: message, signature or values do not have their form.
        BadSignature: step 2. BindingMismatch: step 3.
    """
    attest = parse_attest(part.message)
    signature = parse_signature(part.signature, key)
    verify_signature(key, signature, part.message)
    if len(attest.pcr_digest) != DIGEST_BYTES[signature.hash_name]:
        raise MalformedInput(
            f"TPM quote: PCR digest of {len(attest.pcr_digest)} bytes, its signature is with"
            f" {signature.hash_name}"
        )
    if part.pcrs is None:
        return VerifiedTpmQuote(attest, {})
    values = _selected_values(attest, part.pcrs)
    found = digest(signature.hash_name, b"".join(values))
    if found != attest.pcr_digest:
        raise BindingMismatch(
            f"PCR values hash to {found.hex()}, the quote's digest is {attest.pcr_digest.hex()}"
        )
    banks: PcrBanks = {bank: {} for bank, _ in attest.selection}
    for (bank, index), value in zip(attest.selected, values, strict=True):
        banks[bank][index] = value
    return VerifiedTpmQuote(attest, banks)


def _selected_values(
    attest: TpmsAttest, pcrs: tuple[bytes, ...] | Mapping[str, Mapping[int, bytes]]
) -> list[bytes]:
    selected = attest.selected
    if isinstance(pcrs, tuple):
        if len(pcrs) == len(selected):
            values = list(pcrs)
        elif len(pcrs) == PCRS and len(attest.selection) == 1 and all(index < PCRS for _, index in selected):
            values = [pcrs[index] for _, index in selected]
        else:
            raise MalformedInput(f"{len(pcrs)} PCR values for a quote of {len(selected)}")
    else:
        missing = [f"{bank}:{index}" for bank, index in selected if index not in pcrs.get(bank, {})]
        if missing:
            raise MalformedInput(f"no value for the quoted PCR {', '.join(missing[:8])}")
        values = [pcrs[bank][index] for bank, index in selected]
    for (bank, index), value in zip(selected, values, strict=True):
        if len(value) != DIGEST_BYTES[bank]:
            raise MalformedInput(
                f"PCR {index} of {bank} has {len(value)} bytes, expected {DIGEST_BYTES[bank]}"
            )
    return values
