"""Which part of an event's data its digest is of: only that part may be believed.

======================================= ====================================================================
part                                    events
======================================= ====================================================================
all of the data                         separators, actions, variables, partition tables, versions
data of the variable, without its name  EV_EFI_VARIABLE_BOOT
payload of the tag, without its id      EV_EVENT_TAG of applications (Confidential Containers' AAEL records)
text after the boot loader's prefix     EV_IPL of GRUB: ``grub_cmd``, ``kernel_cmdline`` and their kin
======================================= ====================================================================

Everything else is the log's own description of something measured elsewhere: a file, a table, an image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from cloister.attest.eventlog.kinds import (
    EV_EFI_VARIABLE_BOOT,
    EV_EVENT_TAG,
    EV_IPL,
    EV_SEPARATOR,
    MUST_HASH_TO_DIGEST,
)
from cloister.attest.eventlog.log import Event
from cloister.errors import BindingMismatch, MalformedInput

_GRUB_PREFIXES = (
    b"grub_cmd: ",
    b"grub_cmd ",
    b"kernel_cmdline: ",
    b"grub_kernel_cmdline ",
    b"module_cmdline: ",
    b"grub_module_cmdline ",
)
_SEPARATOR_ERROR = b"\x01\x00\x00\x00"


def measured_part(event: Event, bank: str) -> bytes | None:
    """The part of ``event.data`` that the digest in ``bank`` is of; None if it is of something else.

    Raises:
        BindingMismatch: the type's digest is always of its data, and this one is not.
        MalformedInput: the event has no digest in ``bank``.
    """
    digest = event.digests.get(bank)
    if digest is None:
        raise MalformedInput(f"{event.type_name} has no {bank} digest")
    for part in _candidates(event):
        if hashlib.new(bank, part, usedforsecurity=False).digest() == digest:
            return part
    if event.event_type in MUST_HASH_TO_DIGEST and not _is_error_separator(event, digest, bank):
        raise BindingMismatch(
            f"{event.type_name} in register {event.index}: its {bank} digest is not of its data"
        )
    return None


def _candidates(event: Event) -> Iterator[bytes]:
    data = event.data
    yield data
    if event.event_type == EV_EFI_VARIABLE_BOOT and len(data) >= 32:
        name_bytes = 2 * int.from_bytes(data[16:24], "little")
        content_bytes = int.from_bytes(data[24:32], "little")
        if 32 + name_bytes + content_bytes == len(data):
            yield data[32 + name_bytes :]
    elif event.event_type == EV_EVENT_TAG and len(data) >= 8:
        if int.from_bytes(data[4:8], "little") == len(data) - 8:
            yield data[8:]
    elif event.event_type == EV_IPL:
        text = data.split(b"\x00", 1)[0]
        for prefix in _GRUB_PREFIXES:
            if text.startswith(prefix):
                command = text[len(prefix) :]
                yield command
                yield command + b"\x00"
        yield text


def _is_error_separator(event: Event, digest: bytes, bank: str) -> bool:
    """After a failed boot phase the digest is of the number 1 and the data says what failed."""
    failed = hashlib.new(bank, _SEPARATOR_ERROR, usedforsecurity=False).digest()
    return event.event_type == EV_SEPARATOR and digest == failed
