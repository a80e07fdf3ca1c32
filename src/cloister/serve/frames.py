"""Wire format between the frontend and a worker: length-prefixed frames over a UNIX socket.

====== ==== ============= ===========================================================
offset size field         meaning
====== ==== ============= ===========================================================
0      4    head_bytes    big-endian length of the head, at most MAX_HEAD_BYTES
4      8    payload_bytes big-endian length of the payload, at most the reader's limit
12     -    head          msgpack: one of the messages below
12+h   -    payload       the bodies that the head lists, one after the other
====== ==== ============= ===========================================================

A frame carries any number of requests or answers, so that a busy frontend hands over its whole queue with one
write. The decoder does no I/O and serves both sides. A worker is a guest: whatever it sends, nothing but
``MalformedInput`` and ``WorkerLost`` comes out of here.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Generic, TypeVar

import msgspec

from cloister.errors import MalformedInput, WorkerLost

PREFIX = struct.Struct(">IQ")
MAX_HEAD_BYTES = 1 << 24
MAX_PAYLOAD_BYTES = 1 << 30
_READ_BYTES = 1 << 18
_JOIN_BYTES = 1 << 16

Length = Annotated[int, msgspec.Meta(ge=0, le=MAX_PAYLOAD_BYTES)]
Headers = list[tuple[bytes, bytes]]


class Load(msgspec.Struct, tag="load", array_like=True, frozen=True):
    """Frontend to worker, once: unpack the archive and make the handler ready."""

    name: str
    version: str
    archive_fd: int
    folder: str
    protected: bool
    gpu_id: int | None = None
    batch_size: int = 1


class RequestItem(msgspec.Struct, array_like=True, frozen=True):
    """One caller's request; its body is the next ``body_bytes`` of the payload."""

    number: int
    request_id: str
    headers: Headers
    query: bytes
    body_bytes: Length


class Predict(msgspec.Struct, tag="predict", array_like=True, frozen=True):
    """Frontend to worker: requests to answer."""

    items: list[RequestItem]


class Stop(msgspec.Struct, tag="stop", array_like=True, frozen=True):
    """Frontend to worker: no more requests will come; leave."""


class Fault(msgspec.Struct, array_like=True, frozen=True):
    """Why a handler did not answer: never the exception's text, except in open mode."""

    reason: str
    """TorchServe's words, for example ``Prediction failed``."""
    exception: str = ""
    fingerprint: str = ""
    text: str = ""


class AnswerItem(msgspec.Struct, array_like=True, frozen=True):
    """The answer to the request of the same number; its body is the next ``body_bytes`` of the payload."""

    number: int
    status: int
    headers: Headers
    body_bytes: Length
    fault: Fault | None = None


class Answers(msgspec.Struct, tag="answers", array_like=True, frozen=True):
    """Worker to frontend: answers, in any order."""

    items: list[AnswerItem]


class Loaded(msgspec.Struct, tag="loaded", array_like=True, frozen=True):
    """Worker to frontend, once: the handler is ready."""


class LoadFailed(msgspec.Struct, tag="load-failed", array_like=True, frozen=True):
    """Worker to frontend, once: the handler could not be made ready."""

    fault: Fault


ToWorker = Load | Predict | Stop
FromWorker = Loaded | LoadFailed | Answers
Message = TypeVar("Message")
Frame = tuple[Message, memoryview]

_encoder = msgspec.msgpack.Encoder()


def encode_frame(message: ToWorker | FromWorker, bodies: Sequence[bytes] = ()) -> list[bytes]:
    """The buffers of one frame, to be written in order.

    Small bodies come joined with the head into one buffer; a large one is passed on without a copy.
    """
    head = _encoder.encode(message)
    payload_bytes = sum(map(len, bodies))
    prefix = PREFIX.pack(len(head), payload_bytes)
    if payload_bytes <= _JOIN_BYTES:
        return [b"".join((prefix, head, *bodies))]
    return [prefix + head, *bodies]


def split_payload(lengths: Iterable[int], payload: memoryview) -> Iterator[memoryview]:
    """Cut ``payload`` into consecutive bodies.

    Raises:
        MalformedInput: the lengths do not add up to exactly the payload; checked before the first body.
    """
    sizes = list(lengths)
    if sum(sizes) != len(payload):
        raise MalformedInput(f"frame lists {sum(sizes)} bytes of bodies and carries {len(payload)}")
    offset = 0
    for size in sizes:
        yield payload[offset : offset + size]
        offset += size


class FrameDecoder(Generic[Message]):
    """Turns a stream of bytes, however it is cut, into frames. After an error it stays broken."""

    def __init__(self, kind: type[Message], *, payload_limit: int = MAX_PAYLOAD_BYTES) -> None:
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._limit = payload_limit
        self._rest = bytearray()
        self._need = PREFIX.size

    @property
    def missing_bytes(self) -> int:
        """How many more bytes the frame in progress needs at least."""
        return self._need - len(self._rest)

    def feed(self, data: bytes) -> list[Frame[Message]]:
        """Take in bytes; give back the frames that they complete.

        Raises:
            MalformedInput: a length over its limit, or a head that is not one of the expected messages.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return []
            data = bytes(self._rest)
            self._rest.clear()
        frames: list[Frame[Message]] = []
        view = memoryview(data)
        start = 0
        while True:
            self._need = PREFIX.size
            if len(data) - start < PREFIX.size:
                break
            head_bytes, payload_bytes = PREFIX.unpack_from(data, start)
            if head_bytes > MAX_HEAD_BYTES or payload_bytes > self._limit:
                raise MalformedInput(f"frame of {head_bytes} + {payload_bytes} bytes is over the limit")
            self._need += head_bytes + payload_bytes
            if len(data) - start < self._need:
                break
            head_end = start + PREFIX.size + head_bytes
            end = start + self._need
            frames.append((self._decode(view[start + PREFIX.size : head_end]), view[head_end:end]))
            start = end
        self._rest += view[start:]
        return frames

    def end(self) -> None:
        """Say that the stream has ended.

        Raises:
            WorkerLost: it ended inside a frame.
        """
        if self._rest:
            raise WorkerLost("the connection ended inside a frame")

    def _decode(self, head: memoryview) -> Message:
        try:
            return self._decoder.decode(head)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise MalformedInput("frame head is not a known message") from error


class FrameSocket(Generic[Message]):
    """Blocking frames over a connected stream socket: the worker's side."""

    def __init__(
        self, connection: socket.socket, kind: type[Message], *, payload_limit: int = MAX_PAYLOAD_BYTES
    ) -> None:
        self._socket = connection
        self._decoder = FrameDecoder(kind, payload_limit=payload_limit)
        self._ready: list[Frame[Message]] = []

    def read(self) -> Frame[Message] | None:
        """The next frame, or None at the end of the stream.

        Raises:
            MalformedInput: not a frame.
            WorkerLost: the stream broke, or ended inside a frame.
        """
        while not self._ready:
            data = self._receive()
            if not data:
                self._decoder.end()
                return None
            self._ready = self._decoder.feed(data)
            self._ready.reverse()
        return self._ready.pop()

    def write(self, message: ToWorker | FromWorker, bodies: Sequence[bytes] = ()) -> None:
        """Send one frame whole.

        Raises:
            WorkerLost: the other side is gone.
        """
        try:
            for part in encode_frame(message, bodies):
                self._socket.sendall(part)
        except OSError as error:
            raise WorkerLost(f"cannot send to the other side: {error.strerror}") from error

    def _receive(self) -> bytes:
        """One read; a long frame in progress is read whole, into one buffer."""
        missing = self._decoder.missing_bytes
        try:
            if missing <= _READ_BYTES:
                return self._socket.recv(_READ_BYTES)
            return self._receive_exactly(missing)
        except OSError as error:
            raise WorkerLost(f"cannot read from the other side: {error.strerror}") from error

    def _receive_exactly(self, size: int) -> bytes:
        buffer = bytearray(size)
        view = memoryview(buffer)
        filled = 0
        while filled < size:
            count = self._socket.recv_into(view[filled:])
            if count == 0:
                break
            filled += count
        return bytes(view[:filled])
