"""Fuzz what a hostile worker or a hostile worker host sends: only declared errors may escape.

The first byte chooses the parser. Several get a valid frame or message around the input, which a fuzzer
seldom finds: the input is then the head's fields, the payload, the headers.

Run: ``python fuzz/fuzz_frames.py [corpus folder] [libFuzzer options]``, with atheris installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec

from cloister.errors import CloisterError, MalformedInput, ModelFailed, WorkerLost
from cloister.serve.frames import (
    MAX_ANSWER_BYTES,
    PREFIX,
    AnswerItem,
    Answers,
    Frame,
    FrameDecoder,
    FromWorker,
    HeadDecoder,
    MetricSample,
)
from cloister.serve.handler_metrics import HandlerMetrics
from cloister.serve.http.predictions import render_answer
from cloister.serve.http.render import Renderer
from cloister.serve.jobs import Answer, Job
from cloister.serve.log import configure_log
from cloister.serve.remote import messages
from cloister.serve.remote.channel import Channel, printable
from cloister.serve.seat import Seat
from cloister.serve.stats import ModelStats

REQUESTS = 4
_RENDERER = Renderer()


class _Silent:
    """A worker that is never written to."""

    pid = 0
    reason = "it ended"
    state = "none"
    round_trip_s = 0.0

    def send(self, message: Any, bodies: Sequence[bytes] = ()) -> None:
        """Nowhere."""

    def kill(self, reason: str) -> None:
        """Nobody."""

    async def stop(self) -> None:
        """Never started."""


def _delivered(_: Job, answer: Answer) -> None:
    """What becomes of an answer on its way to a caller: one response, whatever it says."""
    response = render_answer(answer)
    prefix = _RENDERER.learn(response.status, response.headers)
    if answer.fault is None:
        assert prefix.count(b"\r\n") == len(response.headers) + 4 - _own(response.headers), "another header"


def _own(headers: Any) -> int:
    """Lines that the answer's own headers stand in for."""
    names = {name for name, _ in headers}
    given = sum(name == b"x-request-id" for name, _ in headers)
    return len(names & {b"pragma", b"cache-control", b"expires"}) + given


def _answers(frame: Frame[Any]) -> None:
    """A frame of answers as the supervisor takes it, with requests that are waiting for some of them."""
    message, _ = frame
    if not isinstance(message, Answers):
        return
    stats = ModelStats("m", "1")
    seat = Seat(cast("Any", _Silent()), stats, batch_size=REQUESTS, on_room=lambda: None)
    waiting = [Job(f"r{number}", [], b"", b"", _delivered) for number in range(REQUESTS)]
    seat.give(waiting, 0.0)
    seat.take_answers(frame)
    stats.measured.take(message.metrics)


def _stream(data: bytes, *, size: int = 7) -> None:
    kind: Any = FromWorker
    decoder: FrameDecoder[Any] = FrameDecoder(kind, payload_limit=MAX_ANSWER_BYTES)
    for at in range(0, len(data), size):
        for frame in decoder.feed(data[at : at + size]):
            _answers(frame)
    decoder.end()


def _frame_around(data: bytes) -> None:
    """The input as head and payload of a frame whose prefix is right."""
    split = data[0] if data else 0
    head, payload = data[1 : 1 + split], data[1 + split :]
    _stream(PREFIX.pack(len(head), len(payload)) + head + payload, size=1 << 16)


def _fields(data: bytes) -> None:
    """Well-formed answers whose numbers, statuses, lengths and headers come from the input."""
    values = [byte - 8 for byte in data[:8]] + [0] * 8
    items = [
        AnswerItem(
            values[0], values[1] * 100, max(0, values[2]), max(0, values[3]), more=bool(values[4] & 1)
        ),
        AnswerItem(values[5], 200, 0, max(0, values[6])),
    ]
    rest = data[8:]
    metrics = [MetricSample(rest[:9].decode("latin-1"), "gauge", "", [(rest[:3].decode("latin-1"), "")], 1.0)]
    head = msgspec.msgpack.encode(Answers([rest], items, float(values[7]), values[0], metrics))
    _stream(PREFIX.pack(len(head), len(rest)) + head + rest, size=1 << 16)


def _headers(data: bytes) -> None:
    """One answer with these headers."""
    name, _, value = data.partition(b":")
    _delivered(Job("r", [], b"", b"", _delivered), Answer(200, [(name, value)], b""))


def _metrics(data: bytes) -> None:
    HandlerMetrics().take(msgspec.msgpack.decode(data, type=list[MetricSample]))


async def _channel(data: bytes) -> None:
    """A joining connection that says this."""
    channel = Channel()
    channel.data_received(data)
    channel.connection_lost(None)
    opening: Any = messages.Opening
    for kind in (opening, messages.FromHost, messages.FromFrontend):
        message: Any = await channel.receive(kind, limit=messages.MAX_CONTROL_BYTES, timeout_s=1)
        if isinstance(message, messages.Refused):
            assert printable(message.reason).isprintable()


def _messages(data: bytes) -> None:
    _LOOP.run_until_complete(_channel(data))


def _messages_around(data: bytes) -> None:
    """The input as up to three messages whose prefixes are right."""
    third = -(-len(data) // 3) or 1
    parts = [data[at : at + third] for at in range(0, len(data), third)]
    _messages(b"".join(messages.PREFIX.pack(len(part)) + part for part in parts))


_LOOP = asyncio.new_event_loop()
_EACH: tuple[Any, ...] = (messages.FromHost, messages.FromFrontend, messages.Opening, messages.Attach)
_PARSERS: tuple[Callable[[bytes], object], ...] = (
    _stream,
    _frame_around,
    _fields,
    HeadDecoder(),
    _headers,
    _metrics,
    _messages,
    _messages_around,
    lambda data: [messages.decode(data[1:], _EACH[data[0] % len(_EACH)])] if data else None,
)


def one_input(data: bytes) -> None:
    """Give the input, without its first byte, to the parser that this byte chooses."""
    if not data:
        return
    chosen = _PARSERS[data[0] % len(_PARSERS)]
    allowed: tuple[type[Exception], ...] = (MalformedInput, ModelFailed, WorkerLost)
    if chosen in (_messages, _messages_around):
        allowed = (CloisterError,)
    if chosen is _metrics:  # what is under test there is what comes after the decoding
        allowed = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
    with contextlib.suppress(*allowed):
        chosen(data[1:])


def main() -> None:
    """Fuzz until stopped."""
    configure_log("error")  # failures are logged, and there are many
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
