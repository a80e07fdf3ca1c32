"""Runtime data of Azure's paravisor: the virtual TPM's keys, the machine's configuration, the guest's data.

==================== ===========================================================================
member               content
==================== ===========================================================================
``keys``             JSON Web Keys; ``HCLAkPub`` is the virtual TPM's attestation key (RSA)
``vm-configuration`` ``secure-boot``, ``tpm-enabled``, ``console-enabled``, ``vmUniqueId`` and so on
``user-data``        64 bytes that the guest has had bound, hexadecimal; older reports have none
==================== ===========================================================================

Source: Microsoft, "Azure confidential VMs: guest attestation", runtime data.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloister.attest.tpm.encoding import parse_object
from cloister.attest.tpm.keys import AttestationKey, rsa_key
from cloister.errors import MalformedInput

ATTESTATION_KEY = "HCLAkPub"
USER_DATA_BYTES = 64
MAX_KEYS = 16


@dataclass(frozen=True, slots=True)
class RuntimeData:
    """What the paravisor says of the machine; worth what the hardware report that binds it is worth."""

    attestation_key: AttestationKey
    vm_configuration: Mapping[str, Any]
    user_data: bytes
    """64 bytes; empty if there is none."""


def parse_runtime_data(raw: bytes) -> RuntimeData:
    """Runtime data from its JSON.

    Raises:
        MalformedInput: not such an object, or without exactly one attestation key.
    """
    document = parse_object(raw, "HCL runtime data")
    configuration = document.get("vm-configuration", {})
    if not isinstance(configuration, dict):
        raise MalformedInput("HCL runtime data: vm-configuration is not an object")
    return RuntimeData(_attestation_key(document.get("keys")), configuration, _user_data(document))


def _attestation_key(keys: Any) -> AttestationKey:
    if not isinstance(keys, list) or len(keys) > MAX_KEYS:
        raise MalformedInput(f"HCL runtime data: keys is not a list of at most {MAX_KEYS}")
    named = [key for key in keys if isinstance(key, dict) and key.get("kid") == ATTESTATION_KEY]
    if len(named) != 1:
        raise MalformedInput(f"HCL runtime data has {len(named)} keys called {ATTESTATION_KEY}, expected one")
    key = named[0]
    if key.get("kty") != "RSA":
        raise MalformedInput(f"{ATTESTATION_KEY} is of type {str(key.get('kty'))[:20]!r}, expected 'RSA'")
    return rsa_key(_number(key, "n"), int.from_bytes(_number(key, "e"), "big"))


def _number(key: Mapping[str, Any], name: str) -> bytes:
    text = key.get(name)
    if not isinstance(text, str) or not text.isascii() or len(text) > 1024:
        raise MalformedInput(f"{ATTESTATION_KEY}: {name} is not base64url")
    try:
        return urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (Base64Error, ValueError) as error:
        raise MalformedInput(f"{ATTESTATION_KEY}: {name} is not base64url") from error


def _user_data(document: Mapping[str, Any]) -> bytes:
    text = document.get("user-data", "")
    try:
        raw = bytes.fromhex(text)
    except (TypeError, ValueError) as error:
        raise MalformedInput("HCL runtime data: user-data is not hexadecimal") from error
    if len(raw) not in (0, USER_DATA_BYTES):
        raise MalformedInput(f"HCL runtime data: user-data has {len(raw)} bytes, expected {USER_DATA_BYTES}")
    return raw
