"""Wire format of the joining connection: length-prefixed messages.

====== ==== ============= ===============================================
offset size field         meaning
====== ==== ============= ===============================================
0      4    message_bytes big-endian, at most the reader's limit
4      -    message       msgpack: one of the messages below
====== ==== ============= ===============================================

Before both sides have proved themselves only ``Hello``, ``Proof`` and ``Refused`` are understood.
"""

from __future__ import annotations

import struct
from typing import Annotated, Literal, TypeVar

import msgspec

from cloister.errors import MalformedInput

VERSION = 1
PREFIX = struct.Struct(">I")
NONCE_BYTES = 32
TICKET_BYTES = 32
MAX_HELLO_BYTES = 1 << 10
MAX_PROOF_BYTES = 2 << 20
"""Evidence of one platform with its endorsements."""
MAX_CONTROL_BYTES = MAX_PROOF_BYTES

Role = Literal["frontend", "worker"]
Mode = Literal["protected", "open"]
Nonce = Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
Ticket = Annotated[bytes, msgspec.Meta(min_length=TICKET_BYTES, max_length=TICKET_BYTES)]
Digest = Annotated[bytes, msgspec.Meta(min_length=48, max_length=48)]
Words = Annotated[str, msgspec.Meta(max_length=1000)]
Name = Annotated[str, msgspec.Meta(max_length=128)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 16)]


class Hello(msgspec.Struct, tag="hello", array_like=True, frozen=True):
    """Either side, at once: who speaks, and the nonce that the other's proof must answer."""

    version: int
    role: Role
    mode: Mode
    nonce: Nonce


class Proof(msgspec.Struct, tag="proof", array_like=True, frozen=True):
    """What a side shows of itself. Everything in it is bound to both nonces and both TLS keys."""

    settings_digest: Digest
    """SHA-384 of the effective settings."""
    confinement: Words
    """The settings that both sides must have alike, as canonical JSON."""
    scheme: str = ""
    evidence: bytes = b""
    endorsements: bytes = b""
    """JSON; empty if the Attester holds none."""
    token: bytes = b""
    """HMAC-SHA-384 under the join token; empty without one."""


class Refused(msgspec.Struct, tag="refused", array_like=True, frozen=True):
    """Either side, last: why not."""

    reason: Words
    again: bool = False
    """Whether it may be different soon."""


class ModelKey(msgspec.Struct, array_like=True, frozen=True):
    """One version of a model, by its content too."""

    name: Name
    version: Name
    digest: Name
    """Of the sealed container, or SHA-256 of the plain archive."""


class Offer(msgspec.Struct, tag="offer", array_like=True, frozen=True):
    """Worker host, once: what it has and how many workers it runs; 0 means one for each model."""

    name: Name
    slots: Count
    digests: frozenset[Name]
    """Of the models in its store."""


class Assign(msgspec.Struct, tag="assign", array_like=True, frozen=True):
    """Frontend: start a worker of this model, and connect it with this ticket."""

    slot: int
    model: ModelKey
    ticket: Ticket
    config: bytes
    """The model's configuration as JSON."""


class Withdraw(msgspec.Struct, tag="withdraw", array_like=True, frozen=True):
    """Frontend: end this slot's worker now."""

    slot: int


class Attach(msgspec.Struct, tag="attach", array_like=True, frozen=True):
    """Worker host, first on a connection for frames: its worker has loaded the model of this ticket."""

    ticket: Ticket
    pid: int
    state: Words
    """What confines it, in one word."""


class Ended(msgspec.Struct, tag="ended", array_like=True, frozen=True):
    """Worker host: this slot has no worker, or none any more."""

    slot: int
    reason: Words


class Ping(msgspec.Struct, tag="ping", array_like=True, frozen=True):
    """Either side, regularly: alive."""

    sent: float = 0.0
    """The frontend's own clock."""


class Pong(msgspec.Struct, tag="pong", array_like=True, frozen=True):
    """Worker host: the frontend's ping has come."""

    sent: float


class Challenge(msgspec.Struct, tag="challenge", array_like=True, frozen=True):
    """Frontend, from time to time: prove yourself anew, for this nonce."""

    nonce: Nonce


class Renewal(msgspec.Struct, tag="renewal", array_like=True, frozen=True):
    """Worker host: proved anew, and the frontend's ``Proof`` has to answer this nonce."""

    nonce: Nonce
    proof: Proof


class Leave(msgspec.Struct, tag="leave", array_like=True, frozen=True):
    """Either side: let what is being computed finish, send nothing new, then close."""


Opening = Hello | Proof | Refused
FromFrontend = Refused | Assign | Withdraw | Ping | Challenge | Proof | Leave
FromHost = Refused | Offer | Ended | Ping | Pong | Renewal | Leave
Any = Opening | FromFrontend | FromHost | Attach
Message = TypeVar("Message")

_encoder = msgspec.msgpack.Encoder()


def encode(message: Any) -> bytes:
    """One message with its length."""
    raw = _encoder.encode(message)
    return PREFIX.pack(len(raw)) + raw


def decode(raw: bytes, kind: type[Message]) -> Message:
    """One message of the kind that may come now.

    Raises:
        MalformedInput: another one, or none.
    """
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedInput("not a message that can come now") from error


def message_bytes(prefix: bytes, limit: int) -> int:
    """The length that a prefix announces.

    Raises:
        MalformedInput: over the limit, as anything that does not speak this protocol will be.
    """
    length: int = PREFIX.unpack(prefix)[0]
    if length > limit:
        raise MalformedInput(f"a message of {length} bytes, at most {limit} can come now")
    return length
