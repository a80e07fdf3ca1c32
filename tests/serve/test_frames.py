"""Frames: whatever is cut or changed, whole frames come out or one of the two declared errors."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import MalformedInput, WorkerLost
from cloister.serve.frames import (
    MAX_HEAD_BYTES,
    PREFIX,
    AnswerItem,
    Answers,
    Fault,
    FrameDecoder,
    FrameSocket,
    FromWorker,
    Load,
    Predict,
    RequestItem,
    Stop,
    ToWorker,
    encode_frame,
    split_payload,
)

BODIES = st.lists(st.binary(max_size=300), max_size=5)


def predict_frame(bodies: list[bytes]) -> tuple[Predict, bytes]:
    items = [RequestItem(i, str(i), [(b"a", b"b")], b"q=1", len(body)) for i, body in enumerate(bodies)]
    message = Predict(items)
    return message, b"".join(encode_frame(message, bodies))


def decode(kind: Any, raw: bytes, **options: Any) -> Any:
    return FrameDecoder(kind, **options).feed(raw)


@given(BODIES, st.integers(1, 50))
def test_any_cut_gives_the_same_frames(bodies: list[bytes], step: int) -> None:
    """A stream of frames decodes to the same messages and bodies wherever it is cut."""
    message, raw = predict_frame(bodies)
    stream = raw + b"".join(encode_frame(Stop())) + raw
    decoder: FrameDecoder[Any] = FrameDecoder(ToWorker)  # type: ignore[arg-type]
    frames = [f for i in range(0, len(stream), step) for f in decoder.feed(stream[i : i + step])]
    assert [f[0] for f in frames] == [message, Stop(), message]
    lengths = [item.body_bytes for item in frames[2][0].items]
    assert [bytes(part) for part in split_payload(lengths, frames[2][1])] == bodies
    decoder.end()


@settings(max_examples=200)
@given(st.binary(max_size=200), st.integers(0, 10_000), st.integers(0, 255))
def test_only_declared_errors_escape(noise: bytes, place: int, value: int) -> None:
    """Random bytes and frames with a changed byte raise MalformedInput or wait for more, nothing else."""
    item = AnswerItem(1, 200, [(b"content-type", b"text/plain")], 5, Fault("x", "Y", "z"))
    changed = bytearray(b"".join(encode_frame(Answers([item]), [b"hello"])))
    changed[place % len(changed)] = value
    for raw in (noise, bytes(changed)):
        for kind in (FromWorker, ToWorker):
            with contextlib.suppress(MalformedInput):
                decode(kind, raw)


def test_limits() -> None:
    """A head or payload over its limit is refused by its announced length alone."""
    with pytest.raises(MalformedInput, match="limit"):
        decode(ToWorker, PREFIX.pack(MAX_HEAD_BYTES + 1, 0))
    with pytest.raises(MalformedInput, match="limit"):
        decode(ToWorker, PREFIX.pack(1, 11), payload_limit=10)


def test_other_sides_messages_are_refused() -> None:
    """A worker cannot send what only a frontend may."""
    load = Load(name="a", version="1", archive_fd=3, folder="/", protected=True)
    with pytest.raises(MalformedInput):
        decode(FromWorker, b"".join(encode_frame(load)))


@pytest.mark.parametrize("lengths", [[4], [2, 4], [], [6]])
def test_bodies_must_add_up(lengths: list[int]) -> None:
    """The listed lengths must be exactly the payload."""
    with pytest.raises(MalformedInput):
        list(split_payload(lengths, memoryview(b"12345")))


def test_end_inside_a_frame() -> None:
    """A stream that ends inside a frame is a lost worker, one between frames is not."""
    raw = b"".join(encode_frame(Stop()))
    decoder: FrameDecoder[Any] = FrameDecoder(ToWorker)  # type: ignore[arg-type]
    decoder.feed(raw)
    decoder.end()
    decoder.feed(raw[:-1])
    with pytest.raises(WorkerLost):
        decoder.end()


def test_socket_carries_large_bodies() -> None:
    """A body far larger than one read arrives whole through a socket, and its end is told apart."""
    ours, theirs = socket.socketpair()
    body = bytes(range(256)) * 20_000
    message, _ = predict_frame([body])
    with ours, theirs:
        sender = FrameSocket[Any](ours, ToWorker)  # type: ignore[arg-type]
        reader = FrameSocket[Any](theirs, ToWorker)  # type: ignore[arg-type]

        def send() -> None:
            sender.write(message, [body])
            ours.close()

        thread = threading.Thread(target=send)
        thread.start()
        frame = reader.read()
        thread.join()
        assert frame is not None
        assert frame[0] == message
        assert frame[1] == body
        assert reader.read() is None


def test_write_to_nobody() -> None:
    """Writing to a closed connection is a lost worker."""
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(WorkerLost):
        FrameSocket[Any](ours, ToWorker).write(Stop())  # type: ignore[arg-type]
