"""What is known of a TPM's attestation key from elsewhere: the key itself, or its certificates."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from cloister.attest.tpm.encoding import decode_certificates, member
from cloister.attest.tpm.evidence import read_key
from cloister.attest.tpm.keys import spki_of
from cloister.errors import MalformedInput


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmEndorsements:
    """Attestation key and certificates, as an owner keeps them after enrolling a machine.

    ===================== =================================================================================
    member                content
    ===================== =================================================================================
    ``ak_public``         the key that the evidence must be signed with: PEM, or SubjectPublicKeyInfo,
                          TPMT_PUBLIC or TPM2B_PUBLIC in base64 or hexadecimal; optional
    ``ak_certificates``   certificate of that key and its issuers: PEM, or DER in base64 or hexadecimal, or a
                          list of these; optional. ``ak_cert_chain`` is the same
    ===================== =================================================================================
    """

    ak_public: bytes | None = None
    """DER of the SubjectPublicKeyInfo."""
    ak_certificates: tuple[bytes, ...] = ()
    """DER, the key's own first."""

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Endorsements from their JSON form.

        Raises:
            MalformedInput: an unknown member, or one that is not of its form.
        """
        names = {"ak_public", "ak_certificates", "ak_cert_chain"}
        if not isinstance(mapping, Mapping) or set(mapping) - names:
            raise MalformedInput(f"TPM endorsements have other members than {', '.join(sorted(names))}")
        key = mapping.get("ak_public")
        chain = member(mapping, ("ak_certificates", "ak_cert_chain"), "TPM endorsements")
        return cls(
            ak_public=None if key is None else spki_of(read_key(key)),
            ak_certificates=() if chain is None else decode_certificates(chain, "ak_certificates"),
        )

    def to_mapping(self) -> dict[str, Any]:
        """JSON form, as ``from_mapping`` takes it."""
        mapping: dict[str, Any] = {}
        if self.ak_public is not None:
            mapping["ak_public"] = b64encode(self.ak_public).decode()
        if self.ak_certificates:
            mapping["ak_certificates"] = [b64encode(der).decode() for der in self.ak_certificates]
        return mapping
