"""What the core and a frontend process say to each other, in the frames of ``serve.frames``.

A frame carries any number of requests of one port, or of answers, so that a busy frontend hands over all that
one turn of its event loop brought with one write. Bodies are the frame's payload, in the items' order. Both
sides are this server's own code, but a frontend reads what anybody sends: the core ends one that says
something else than this.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from cloister.serve.frames import Headers, Index, Length


class PortSpec(msgspec.Struct, array_like=True, frozen=True):
    """One port to serve."""

    fd: int
    """Its bound socket, inherited under this number."""
    way: str
    """``Way`` by its value."""
    pem: bytes = b""
    """TLS key and certificates; empty for plain HTTP. With the following as in ``TlsKeys``."""
    minimum: Literal["TLSv1_2", "TLSv1_3"] = "TLSv1_3"
    client_ca: str = ""
    client_required: bool = False

    def __repr__(self) -> str:
        return f"PortSpec({self.fd}, {self.way})"


class Start(msgspec.Struct, tag="start", array_like=True, frozen=True):
    """Core to frontend, once, first."""

    ports: list[PortSpec]
    protected: bool
    max_request_bytes: int
    body_timeout_s: float
    drain_s: float
    log_level: Literal["debug", "info", "warning", "error"]
    cors: tuple[str, str, str] = ("", "", "")
    """Origin, methods, headers, as in the settings."""
    traced: bool = False
    """It is to say what it refuses."""
    max_unfinished_bytes: int = 0
    """This process's share of what the settings say."""


class Ready(msgspec.Struct, tag="ready", array_like=True, frozen=True):
    """Frontend to core, once: it accepts connections."""


class Alive(msgspec.Struct, tag="alive", array_like=True, frozen=True):
    """Frontend to core, every second: its event loop turns."""


class AskHead(msgspec.Struct, array_like=True, frozen=True):
    """What requests with the same head have in common."""

    method: str
    path: str
    """Decoded, without the query."""
    query: bytes
    headers: Headers
    certificate: bytes = b""
    """DER of the client certificate that TLS has verified; empty for none."""


class AskItem(msgspec.Struct, array_like=True, frozen=True):
    """One whole request; its body is the next ``body_bytes`` of the payload."""

    number: int
    request_id: str
    head: Index
    """Which of the frame's heads is its own."""
    body_bytes: Length


class Asks(msgspec.Struct, tag="asks", array_like=True, frozen=True):
    """Frontend to core: requests that came in at one port."""

    port: Index
    """Which of ``Start.ports``."""
    heads: list[bytes]
    """Each distinct ``AskHead`` once, as msgpack."""
    items: list[AskItem]


class Gone(msgspec.Struct, tag="gone", array_like=True, frozen=True):
    """Frontend to core: the callers of these have left."""

    numbers: list[int]


class Refused(msgspec.Struct, tag="refused", array_like=True, frozen=True):
    """Frontend to core, where requests are traced: one was refused before it was whole."""

    port: Index
    parent: Headers
    """What continues its caller's trace."""
    status: int
    took_s: float


class ReplyItem(msgspec.Struct, array_like=True, frozen=True):
    """The answer to the request of the same number, or a part of it."""

    number: int
    status: int
    head: Index
    """Which of the frame's heads are its headers; they have been checked."""
    body_bytes: Length
    request_id: str = ""
    """Where the answer has another one than its request came with."""
    more: bool = False
    """This is a part; others follow. Status and headers count in the first."""
    broken: bool = False
    """It broke off: the connection is to be closed, so that nobody takes what came for the whole."""


class Replies(msgspec.Struct, tag="replies", array_like=True, frozen=True):
    """Core to frontend: answers, in any order."""

    heads: list[bytes]
    items: list[ReplyItem]


class Drain(msgspec.Struct, tag="drain", array_like=True, frozen=True):
    """Core to frontend: accept nothing more, let what is being answered finish, and leave."""


ToFrontend = Start | Replies | Drain
FromFrontend = Ready | Alive | Asks | Gone | Refused
