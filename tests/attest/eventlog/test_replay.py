"""Replay: registers, and which part of an event may be believed."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from dataclasses import dataclass

import pytest

from cloister.attest.eventlog import attach_event_log, parse_event_log, replay
from cloister.attest.eventlog.measured import measured_part
from cloister.attest.eventlog.replay import replay as replay_bank
from cloister.errors import BindingMismatch, MalformedInput
from tests.fakes.tpm import event_log, extend

ZERO = bytes(48)
ACTION = 0x80000007
IPL = 0xD


@dataclass(frozen=True)
class Registers:
    """Claims, as far as a log is compared with them."""

    rtmrs: tuple[bytes, ...]


CCEL = event_log([(1, ACTION, b"go", b"go"), (3, IPL, b"kernel", b"grub_cmd: kernel\x00")], ("sha384",))
CLAIMS = Registers((extend("sha384", b"go"), ZERO, extend("sha384", b"kernel"), ZERO))


def test_log_of_the_domain_is_attached() -> None:
    """Events of a log that replays to the RTMRs are returned with the part that was measured."""
    attached = attach_event_log(CLAIMS, CCEL + b"\xff" * 64)
    assert attached.registers == ("rtmr0", "rtmr1", "rtmr2", "rtmr3")
    assert [event.measured for event in attached.events] == [b"go", b"kernel"]
    assert attached.events[1].to_mapping()["text"] == "kernel"
    assert replay(CCEL) == {"rtmr0": CLAIMS.rtmrs[0], "rtmr2": CLAIMS.rtmrs[2]}


@pytest.mark.parametrize("index", range(4))
def test_other_registers_are_refused(index: int) -> None:
    """A register that differs from the replay is refused, also one that the log does not extend."""
    changed = list(CLAIMS.rtmrs)
    changed[index] = b"\x01" * 48
    claims = dataclasses.replace(CLAIMS, rtmrs=tuple(changed))
    with pytest.raises(BindingMismatch, match=f"rtmr{index}"):
        attach_event_log(claims, CCEL)
    others = [number for number in range(4) if number != index]
    assert all(
        event.register != f"rtmr{index}" for event in attach_event_log(claims, CCEL, registers=others).events
    )


def test_data_of_an_action_must_be_what_was_measured() -> None:
    """An event whose digest is always of its data cannot carry other data."""
    with pytest.raises(BindingMismatch, match="EV_EFI_ACTION"):
        attach_event_log(CLAIMS, CCEL.replace(b"\x02\x00\x00\x00go", b"\x02\x00\x00\x00no"))


def test_description_is_not_believed() -> None:
    """Data that the digest is not of is not passed on."""
    log = event_log([(1, 0x80000003, b"image", b"/boot/good.efi")], ("sha384",))
    event = attach_event_log(Registers((extend("sha384", b"image"), ZERO, ZERO, ZERO)), log).events[0]
    assert event.measured is None
    assert "good" not in str(event.to_mapping())


@pytest.mark.parametrize("log", [event_log([(5, 8, b"", b"")], ("sha384",)), event_log([(1, 8, b"", b"")])])
def test_what_is_no_ccel_is_malformed(log: bytes) -> None:
    """A log of a register that a trust domain lacks, or without SHA-384, is malformed."""
    with pytest.raises(MalformedInput):
        replay(log)


def test_startup_locality() -> None:
    """PCR 0 starts at the locality that the log states, or at 4 with a measured H-CRTM."""
    no_action = (0, 3, b"", b"StartupLocality\x00\x03")
    raw = event_log([no_action, (0, 8, b"v", b"v")])
    start = bytes(31) + b"\x03"
    assert (
        replay_bank(parse_event_log(raw), "sha256")[0]
        == hashlib.sha256(start + hashlib.sha256(b"v").digest()).digest()
    )
    raw = event_log([(0, 0x80000010, b"v", b"HCRTM")])
    start = bytes(31) + b"\x04"
    assert (
        replay_bank(parse_event_log(raw), "sha256")[0]
        == hashlib.sha256(start + hashlib.sha256(b"v").digest()).digest()
    )


def variable(content: bytes) -> bytes:
    """UEFI_VARIABLE_DATA."""
    return bytes(16) + struct.pack("<QQ", 4, len(content)) + "Boot".encode("utf-16-le") + content


@pytest.mark.parametrize(
    ("kind", "measured", "data", "part"),
    [
        (0x80000002, b"option", variable(b"option"), b"option"),
        (0x80000002, b"option", variable(b"option") + b"!", None),
        (0x6, b"payload", b"AAEL\x07\x00\x00\x00payload", b"payload"),
        (0x6, b"payload", b"AAEL\x06\x00\x00\x00payload", None),
        (IPL, b"set a=b\x00", b"grub_cmd set a=b\x00", b"set a=b\x00"),
        (IPL, b"quiet", b"kernel_cmdline: quiet\x00", b"quiet"),
        (0x4, b"\x01\x00\x00\x00", b"reason", None),
        (0x5, b"x", b"y", None),
    ],
)
def test_measured_part(kind: int, measured: bytes, data: bytes, part: bytes | None) -> None:
    """Each type's measured part is found, and nothing else is taken for it."""
    event = parse_event_log(event_log([(1, kind, measured, data)])).events[0]
    assert measured_part(event, "sha256") == part
