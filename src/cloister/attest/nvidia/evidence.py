"""The forms in which a report travels together with its certificates.

======================== ===============================================================================
form                     content
======================== ===============================================================================
binary                   the report alone; the chain is in the endorsements
JSON object              ``evidence`` (report: base64 or hexadecimal), ``certificate`` (PEM, or base64 of
                         it), and optionally ``arch`` and ``nonce`` (hexadecimal), which must agree with
                         the report; other members are not looked at
JSON list                of such objects, as NVIDIA's SDK writes it: one device here, more through
                         ``split_devices``
``device_evidence_list`` an object with such a list, as Trustee's guest components write it
======================== ===============================================================================
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloister.attest.nvidia.report import NONCE_BYTES
from cloister.errors import MalformedInput

MAX_EVIDENCE_BYTES = 1 << 20
MAX_DEVICES = 32
MAX_CHAIN_BYTES = 32 * 1024
_SPDM_FIRST_BYTE = 0x11


@dataclass(frozen=True, slots=True)
class DeviceEvidence:
    """One device's report, and what came with it."""

    report: bytes
    chain_pem: bytes | None
    arch: str
    """What the sender says; empty if it says nothing."""
    nonce: bytes | None
    """What the sender says that it was asked with."""


def parse_evidence(raw: bytes) -> DeviceEvidence:
    """The evidence of exactly one device, in any of the forms.

    Raises:
        MalformedInput: none of the forms, or several devices.
    """
    if raw[:1] == bytes([_SPDM_FIRST_BYTE]):
        return DeviceEvidence(raw, None, "", None)
    devices = _devices(raw)
    if len(devices) != 1:
        raise MalformedInput(
            f"NVIDIA evidence holds {len(devices)} devices, expected 1",
            hint="take it apart with split_devices and verify it as composite evidence",
        )
    return _parse_device(devices[0])


def split_devices(raw: bytes) -> tuple[bytes, ...]:
    """Evidence of each device in a list of them, for ``verify_composite``.

    Raises:
        MalformedInput: not a JSON list of devices, or more than ``MAX_DEVICES``.
    """
    return tuple(json.dumps(device).encode() for device in _devices(raw))


def _devices(raw: bytes) -> list[Any]:
    if len(raw) > MAX_EVIDENCE_BYTES:
        raise MalformedInput(f"NVIDIA evidence has {len(raw)} bytes, at most {MAX_EVIDENCE_BYTES} are read")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise MalformedInput("NVIDIA evidence is neither an SPDM 1.1 report nor JSON") from error
    if isinstance(document, dict) and "device_evidence_list" in document:
        document = document["device_evidence_list"]
    devices = document if isinstance(document, list) else [document]
    if not 1 <= len(devices) <= MAX_DEVICES:
        raise MalformedInput(f"NVIDIA evidence holds {len(devices)} devices, expected 1 to {MAX_DEVICES}")
    return devices


def _parse_device(device: Any) -> DeviceEvidence:
    if not isinstance(device, Mapping):
        raise MalformedInput("NVIDIA evidence is not a JSON object")
    names = ("evidence", "certificate", "arch", "nonce")
    text = {name: device[name] for name in names if device.get(name) is not None}
    if not all(isinstance(value, str) for value in text.values()) or "evidence" not in text:
        raise MalformedInput("NVIDIA evidence: a member is not a string, or evidence is missing")
    chain = text.get("certificate")
    nonce = decode_binary(text["nonce"], "nonce") if "nonce" in text else None
    if nonce is not None and len(nonce) != NONCE_BYTES:
        raise MalformedInput(f"NVIDIA evidence: nonce has {len(nonce)} bytes, expected {NONCE_BYTES}")
    return DeviceEvidence(
        decode_binary(text["evidence"], "evidence"),
        None if chain is None else decode_pem(chain, "certificate"),
        text.get("arch", ""),
        nonce,
    )


def decode_binary(text: str, what: str) -> bytes:
    """Bytes from hexadecimal or base64 text; hexadecimal is tried first.

    Raises:
        MalformedInput: neither.
    """
    compact = "".join(text.split())
    try:
        return bytes.fromhex(compact)
    except ValueError:
        pass
    try:
        return base64.b64decode(compact, validate=True)
    except (ValueError, binascii.Error) as error:
        raise MalformedInput(f"NVIDIA {what} is neither hexadecimal nor base64") from error


def decode_pem(text: str, what: str) -> bytes:
    """PEM from itself, or from base64 of it.

    Raises:
        MalformedInput: neither, or too long.
    """
    if len(text) > 2 * MAX_CHAIN_BYTES:
        raise MalformedInput(f"NVIDIA {what} has {len(text)} characters, too many")
    if "-----BEGIN" in text:
        try:
            return text.encode("ascii")
        except UnicodeEncodeError as error:
            raise MalformedInput(f"NVIDIA {what} is not ASCII") from error
    return decode_binary(text, what)
