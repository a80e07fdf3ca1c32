"""What NVIDIA says of a device: certificates, reference values, revocation. All of it works offline.

====================== ==================================================================================
member                 JSON form
====================== ==================================================================================
``certificate_chain``  device chain, leaf first: PEM, base64 of PEM, or a list of DER in base64 or
                       hexadecimal; absent where the evidence brings its own. Also read: ``certificate``
``driver_rim``         manifest of the driver: XML, base64 of it, or the RIM service's object with ``rim``
``vbios_rim``          manifest of the VBIOS, or of a switch's BIOS; the same forms
``ocsp``               list of OCSP responses: DER in base64 or hexadecimal; those of other certificates
                       than the ones in use are not looked at
====================== ==================================================================================

All are optional. Without manifests nothing says which firmware is good, and without OCSP responses nothing
says that a certificate has not been revoked; reference values refuse both unless they are told otherwise.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from cloister.attest.nvidia.evidence import decode_binary, decode_pem
from cloister.attest.nvidia.rim import MAX_RIM_BYTES
from cloister.attest.p384 import MAX_CERTIFICATES, split_pem
from cloister.errors import MalformedInput

MAX_OCSP_RESPONSES = 64
MAX_DER_BYTES = 16 * 1024
_MEMBERS = ("certificate_chain", "driver_rim", "vbios_rim", "ocsp")


@dataclass(frozen=True, kw_only=True, repr=False)
class NvidiaEndorsements:
    """Certificates, manifests and OCSP responses; the module's table gives their JSON form."""

    certificate_chain: tuple[bytes, ...] = ()
    """DER, leaf first."""
    driver_rim: bytes | None = None
    vbios_rim: bytes | None = None
    ocsp: tuple[bytes, ...] = ()

    def __repr__(self) -> str:
        return (
            f"NvidiaEndorsements({len(self.certificate_chain)} certificates, {len(self.ocsp)} OCSP responses)"
        )

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Endorsements from their JSON form.

        Raises:
            MalformedInput: a member is unknown, of the wrong type or too long.
        """
        if not isinstance(mapping, Mapping):
            raise MalformedInput("NVIDIA endorsements are not a JSON object")
        members = dict(mapping)
        if "certificate" in members:
            members.setdefault("certificate_chain", members.pop("certificate"))
        if unknown := sorted(map(str, set(members) - set(_MEMBERS))):
            raise MalformedInput(f"NVIDIA endorsements: unknown members {unknown[:5]!r}")
        return cls(
            certificate_chain=_chain(members.get("certificate_chain")),
            driver_rim=_rim(members.get("driver_rim"), "driver_rim"),
            vbios_rim=_rim(members.get("vbios_rim"), "vbios_rim"),
            ocsp=_ders(members.get("ocsp"), "ocsp", MAX_OCSP_RESPONSES),
        )

    def to_mapping(self) -> dict[str, Any]:
        """JSON form, as ``from_mapping`` takes it."""
        mapping: dict[str, Any] = {
            "certificate_chain": [base64.b64encode(der).decode() for der in self.certificate_chain],
            "ocsp": [base64.b64encode(der).decode() for der in self.ocsp],
        }
        for name, rim in (("driver_rim", self.driver_rim), ("vbios_rim", self.vbios_rim)):
            if rim is not None:
                mapping[name] = base64.b64encode(rim).decode()
        return mapping


def _chain(value: Any) -> tuple[bytes, ...]:
    if isinstance(value, str):
        return split_pem(decode_pem(value, "certificate_chain"), "NVIDIA certificate_chain")
    return _ders(value, "certificate_chain", MAX_CERTIFICATES)


def _ders(value: Any, name: str, most: int) -> tuple[bytes, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > most or not all(isinstance(item, str) for item in value):
        raise MalformedInput(f"NVIDIA endorsements: {name} is not a list of at most {most} strings")
    if any(len(item) > 2 * MAX_DER_BYTES for item in value):
        raise MalformedInput(f"NVIDIA endorsements: an entry of {name} is over {MAX_DER_BYTES} bytes")
    return tuple(decode_binary(item, name) for item in value)


def _rim(value: Any, name: str) -> bytes | None:
    if isinstance(value, Mapping):
        value = value.get("rim", "")
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > 2 * MAX_RIM_BYTES:
        raise MalformedInput(f"NVIDIA endorsements: {name} is not a string, or too long")
    return value.encode() if value.lstrip().startswith("<") else decode_binary(value, name)
