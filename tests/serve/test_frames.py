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
    HeadDecoder,
    HeadEncoder,
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
    items = [RequestItem(i, str(i), 0, b"q=1", len(body)) for i, body in enumerate(bodies)]
    message = Predict([HeadEncoder()([(b"a", b"b")])], items)
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
    item = AnswerItem(1, 200, 0, 5, Fault("x", "Y", "z"))
    head = HeadEncoder()([(b"content-type", b"text/plain")])
    changed = bytearray(b"".join(encode_frame(Answers([head], [item]), [b"hello"])))
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
    load = Load(name="a", version="1", model_dir="/", scratch="/", protected=True)
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


@given(st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=5))
def test_heads_come_back(headers: list[tuple[bytes, bytes]]) -> None:
    """Headers survive the way; the same list is encoded once, and equal bytes give the same list."""
    encode, decode_head = HeadEncoder(size=2), HeadDecoder(size=2)
    raw = encode(headers)
    assert encode(headers) is raw
    assert decode_head(raw) == headers
    assert decode_head(bytes(raw)) is decode_head(raw)


def test_heads_are_forgotten() -> None:
    """What is remembered of heads is bounded, and a new list is never taken for one that is gone."""
    encode, decode_head = HeadEncoder(size=3), HeadDecoder(size=3, head_bytes=100)
    for number in range(50):
        headers = [(b"n", str(number).encode())]
        assert decode_head(encode(headers)) == headers
    long = encode([(b"n", bytes(200))])
    assert decode_head(long) is not decode_head(long)


@given(st.binary(max_size=60))
def test_hostile_heads(raw: bytes) -> None:
    """Bytes that are no headers raise MalformedInput, nothing else."""
    with contextlib.suppress(MalformedInput):
        assert isinstance(HeadDecoder()(raw), list)


def test_poll_never_waits() -> None:
    """A look for another frame gives it when it is whole, and nothing before."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = FrameSocket[Any](theirs, ToWorker)  # type: ignore[arg-type]
        assert reader.poll() is None
        raw = b"".join(encode_frame(Stop()))
        ours.sendall(raw[:-1])
        assert reader.poll() is None
        ours.sendall(raw[-1:] + raw)
        first, second = reader.poll(), reader.poll()
        assert first is not None
        assert second is not None
        assert first[0] == second[0] == Stop()
        ours.close()
        with pytest.raises(WorkerLost):
            reader.poll()


def test_a_read_says_whether_more_may_be_there() -> None:
    """After a read that took all there was, nobody has to look again; frames that came with it count."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = FrameSocket[Any](theirs, ToWorker)  # type: ignore[arg-type]
        assert not reader.drained
        raw = b"".join(encode_frame(Stop()))
        ours.sendall(raw)
        assert reader.read() is not None
        assert reader.drained
        ours.sendall(raw + raw)
        assert reader.read() is not None
        assert not reader.drained
        assert reader.poll() is not None
