"""Requests as they come out of a frame, made ready for a handler: in the worker, before any batch.

A request that is malformed is found here and answered alone, with the reason. The headers of a head are
decoded once, however many requests have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from cloister.errors import MalformedInput
from cloister.serve.forms import parse_fields
from cloister.serve.frames import HeadDecoder, Predict, RequestItem
from cloister.serve.oip.marks import take_marks

if TYPE_CHECKING:
    from cloister.serve.oip.adapter import OipExchange

_decode_json = msgspec.json.Decoder().decode


class Head(msgspec.Struct):
    """Headers of one or more requests as handlers see them."""

    headers: dict[str, str]
    content_type: str
    json: bool
    """Plain JSON, which needs no look at the rest of the type."""
    model: tuple[str, str] | None = None
    """Name and version of the model, where the request is one of the Open Inference Protocol."""
    decode: bool = True
    """JSON and text are decoded; forms are taken apart in any case."""


class Incoming(msgspec.Struct, eq=False):
    """One request that waits in the worker for its batch."""

    number: int
    request_id: str
    head: Head
    query: bytes
    body: bytes | memoryview
    alone: bool = False
    fields: dict[str, Any] = {}
    """What the handler is given; filled by ``prepare``."""
    exchange: Any = None
    """``OipExchange`` of a request of the Open Inference Protocol, which renders its answer."""

    def prepare(self) -> None:
        """Decode the body and the query, and let go of the bytes.

        Raises:
            MalformedInput: they are not what the content type says, with the reason.
        """
        head = self.head
        if head.model is not None:
            self.exchange = open_exchange(head.model, head.headers, self.body)
            self.fields = self.exchange.fields
            return
        if head.json and not self.query:
            try:
                self.fields, self.body = {"body": _decode_json(self.body)}, b""
                return
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                pass  # the careful way says what is wrong, or takes it after all
        body = memoryview(self.body)
        self.fields = parse_fields(body, content_type=head.content_type, query=self.query, decode=head.decode)
        self.body = b""


class Intake:
    """Takes frames apart; remembers heads that it has seen."""

    def __init__(self, *, size: int = 512, decode: bool = True) -> None:
        self._decode = HeadDecoder(size=size)
        self._decode_values = decode
        self._known: dict[int, tuple[Any, Head]] = {}
        self._size = size

    def take(self, message: Predict, payload: memoryview) -> list[Incoming]:
        """The requests of one frame.

        Raises:
            MalformedInput: the frame's parts do not fit together.
        """
        heads = [self._head(raw) for raw in message.heads]
        content: bytes | memoryview = payload.tobytes() if len(payload) <= 1 << 16 else payload
        start = 0
        taken: list[Incoming] = []
        items: Sequence[RequestItem] = message.items
        for item in items:
            end = start + item.body_bytes
            if end > len(content) or item.head >= len(heads):
                raise MalformedInput("a request that does not fit its frame")
            taken.append(
                Incoming(
                    item.number,
                    item.request_id,
                    heads[item.head],
                    item.query,
                    content[start:end],
                    item.alone,
                )
            )
            start = end
        if start != len(content):
            raise MalformedInput(f"frame lists {start} bytes of bodies and carries {len(content)}")
        return taken

    def _head(self, raw: bytes) -> Head:
        headers = self._decode(raw)
        known = self._known.get(id(headers))
        if known is not None:
            return known[1]
        named = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        model = take_marks(named)
        content_type = named.get("content-type", "")
        decode = self._decode_values
        json = decode and content_type.startswith("application/json")
        head = Head(named, content_type, json, model, decode)
        if len(self._known) >= self._size:
            self._known.clear()
        self._known[id(headers)] = (headers, head)
        return head


def open_exchange(model: tuple[str, str], headers: dict[str, str], body: bytes | memoryview) -> OipExchange:
    """Decode a request of the Open Inference Protocol.

    Raises:
        MalformedInput: it is none.
    """
    # Imported here: it needs numpy, which a model without tensors need not load.
    from cloister.serve.oip.adapter import OipExchange

    return OipExchange.open(model, headers, body)
