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
``MalformedInput`` and ``WorkerLost`` comes out of here, and their words hold nothing of it: they are logged.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Generic, TypeVar

import msgspec

from cloister.engines.schema import ModelSchema
from cloister.errors import MalformedInput, WorkerLost
from cloister.serve.sandbox.plan import NO_SANDBOX, SandboxPlan, SandboxState

if TYPE_CHECKING:
    import asyncio  # not at run time: a worker has no use for it

PREFIX = struct.Struct(">IQ")
MAX_HEAD_BYTES = 1 << 24
MAX_PAYLOAD_BYTES = 1 << 30
MAX_ANSWER_BYTES = 1 << 28
"""All answers of one frame; a worker that sends more is ended."""
FRAME_BYTES = 1 << 25
"""How much of several bodies goes into one frame; a larger body goes alone."""
_READ_BYTES = 1 << 18
_JOIN_BYTES = 1 << 16

Length = Annotated[int, msgspec.Meta(ge=0, le=MAX_PAYLOAD_BYTES)]
Index = Annotated[int, msgspec.Meta(ge=0)]
Headers = list[tuple[bytes, bytes]]


class MetricDefinition(msgspec.Struct, array_like=True, frozen=True):
    """A metric that handlers find under its name."""

    name: str
    kind: str
    """``counter``, ``gauge`` or ``histogram``."""
    unit: str
    dimensions: list[str]


class Load(msgspec.Struct, tag="load", array_like=True, frozen=True):
    """Frontend to worker, once: make the handler of an unpacked archive ready."""

    name: str
    version: str
    model_dir: str
    """Unpacked archive, shared by all workers of the model."""
    scratch: str
    """Empty folder of this worker alone; also its HOME and TMPDIR."""
    protected: bool
    handler: str = ""
    """As the manifest names it, or as the call that registered the model does."""
    envelope: str = ""
    """TorchServe's form of requests around the handler; empty means none."""
    metrics: tuple[MetricDefinition, ...] = ()
    gpu_id: int | None = None
    batch_size: int = 1
    idempotent: bool = True
    """Whether a request may be computed twice: a failed batch is then run again in halves."""
    cores: tuple[int, ...] = ()
    """Processor numbers to run on; empty means any."""
    threads: int = 0
    """For numerical libraries; 0 leaves the choice to them."""
    sandbox: SandboxPlan = NO_SANDBOX
    decode: bool = True
    """JSON and text arrive decoded at the handler; else as the bytes that the caller sent."""


class RequestItem(msgspec.Struct, array_like=True, frozen=True):
    """One caller's request; its body is the next ``body_bytes`` of the payload."""

    number: int
    request_id: str
    head: Index
    """Which of the frame's heads are its headers."""
    query: bytes
    body_bytes: Length
    alone: bool = False
    """In no batch with others: workers have died with it."""


class Predict(msgspec.Struct, tag="predict", array_like=True, frozen=True):
    """Frontend to worker: requests to answer."""

    heads: list[bytes]
    """Headers of the requests, each distinct list once, as ``encode_head`` makes them."""
    items: list[RequestItem]


class Cancel(msgspec.Struct, tag="cancel", array_like=True, frozen=True):
    """Frontend to worker: nobody waits for these any more. A worker that has not begun leaves them out."""

    numbers: list[int]


class Stop(msgspec.Struct, tag="stop", array_like=True, frozen=True):
    """Frontend to worker: no more requests will come; leave."""


class Fault(msgspec.Struct, array_like=True, frozen=True):
    """Why a handler did not answer."""

    reason: str
    """TorchServe's words, for example ``Prediction failed``."""
    exception: str = ""
    fingerprint: str = ""
    text: str = ""
    """What the exception says. Only for the caller whose request ran alone: never for logs or others."""


class AnswerItem(msgspec.Struct, array_like=True, frozen=True):
    """The answer to the request of the same number; its body is the next ``body_bytes`` of the payload."""

    number: int
    status: int
    head: Index
    """Which of the frame's heads are its headers."""
    body_bytes: Length
    fault: Fault | None = None
    more: bool = False
    """This is a part; others follow. Status and headers count in the first."""


class MetricSample(msgspec.Struct, array_like=True, frozen=True):
    """One value that a handler measured."""

    name: str
    kind: str
    """``counter``, ``gauge`` or ``histogram``."""
    unit: str
    dimensions: list[tuple[str, str]]
    value: float


class Answers(msgspec.Struct, tag="answers", array_like=True, frozen=True):
    """Worker to frontend: answers, in any order."""

    heads: list[bytes]
    items: list[AnswerItem]
    inference_s: float = 0.0
    """Time in the handler for these answers, all batches together."""
    batches: int = 0
    """How many calls of the handler that was."""
    metrics: list[MetricSample] = []


class Confined(msgspec.Struct, tag="confined", array_like=True, frozen=True):
    """Worker to frontend, once, before any of the model's code is loaded, which could say anything."""

    state: SandboxState


class Loaded(msgspec.Struct, tag="loaded", array_like=True, frozen=True):
    """Worker to frontend, once: the handler is ready."""

    form: ModelSchema | None = None
    """The model's inputs and outputs, where an engine serves it without a handler."""
    capacity: Annotated[int, msgspec.Meta(ge=0, le=1 << 16)] = 0
    """How many requests it wants at a time; 0 leaves that to the batch size."""


class LoadFailed(msgspec.Struct, tag="load-failed", array_like=True, frozen=True):
    """Worker to frontend, once: the handler could not be made ready."""

    fault: Fault


ToWorker = Load | Predict | Cancel | Stop
FromWorker = Confined | Loaded | LoadFailed | Answers
Message = TypeVar("Message")
Frame = tuple[Message, memoryview]

_encoder = msgspec.msgpack.Encoder()
_head_decoder = msgspec.msgpack.Decoder(Headers)


class HeadEncoder:
    """Headers as bytes. The same list object, as callers with the same head share one, is encoded once."""

    def __init__(self, *, size: int = 512) -> None:
        self._known: dict[int, tuple[Headers, bytes]] = {}
        self._size = size

    def __call__(self, headers: Headers) -> bytes:
        # The entry holds the list, so that no other object can come to have its identity.
        known = self._known.get(id(headers))
        if known is not None:
            return known[1]
        raw = _encoder.encode(headers)
        if len(self._known) >= self._size:
            self._known.clear()
        self._known[id(headers)] = (headers, raw)
        return raw


class HeadDecoder:
    """Bytes as headers. Equal bytes give the same list object, which nobody may change."""

    def __init__(self, *, size: int = 512, head_bytes: int = 4096) -> None:
        self._known: dict[bytes, Headers] = {}
        self._size = size
        self._head_bytes = head_bytes

    def __call__(self, raw: bytes) -> Headers:
        """The headers.

        Raises:
            MalformedInput: not headers.
        """
        known = self._known.get(raw)
        if known is not None:
            return known
        try:
            headers: Headers = _head_decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise MalformedInput("a frame's head is not a list of headers") from error
        if len(raw) <= self._head_bytes:
            if len(self._known) >= self._size:
                self._known.clear()
            self._known[raw] = headers
        return headers


def encode_frame(message: msgspec.Struct, bodies: Sequence[bytes] = ()) -> list[bytes]:
    """The buffers of one frame, to be written in order.

    Small bodies come joined with the head into one buffer; a large one is passed on without a copy.
    """
    head = _encoder.encode(message)
    payload_bytes = sum(map(len, bodies))
    prefix = PREFIX.pack(len(head), payload_bytes)
    if payload_bytes <= _JOIN_BYTES:
        return [b"".join((prefix, head, *bodies))]
    return [prefix + head, *bodies]


def write_frame(
    transport: asyncio.WriteTransport | None, message: msgspec.Struct, bodies: Sequence[bytes] = ()
) -> None:
    """Write one frame to a connection; nowhere if there is none, or none any more."""
    if transport is None or transport.is_closing():
        return
    parts = encode_frame(message, bodies)
    if len(parts) == 1:
        transport.write(parts[0])
    else:
        transport.writelines(parts)


def split_payload(lengths: Iterable[int], payload: memoryview) -> Iterator[memoryview]:
    """Cut ``payload`` into consecutive bodies.

    Raises:
        MalformedInput: the lengths do not add up to exactly the payload; checked before the first body.
    """
    sizes = list(lengths)
    if sum(sizes) != len(payload):
        raise MalformedInput("frame lists more or fewer bytes of bodies than it carries")
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
                raise MalformedInput("frame is over the limit")
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
        self._drained = False

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    @property
    def drained(self) -> bool:
        """Whether the last ``read`` took all that was there: a ``poll`` right after it would find nothing."""
        return self._drained and not self._ready

    def read(self) -> Frame[Message] | None:
        """The next frame, or None at the end of the stream.

        Raises:
            MalformedInput: not a frame.
            WorkerLost: the stream broke, or ended inside a frame.
        """
        self._drained = False
        while not self._ready:
            data = self._receive()
            if not data:
                self._decoder.end()
                return None
            self._drained = len(data) < _READ_BYTES
            self._ready = self._decoder.feed(data)
            self._ready.reverse()
        return self._ready.pop()

    def poll(self) -> Frame[Message] | None:
        """The next frame if a whole one is there already; never waits.

        Raises:
            MalformedInput: not a frame.
            WorkerLost: the stream broke.
        """
        if not self._ready and self._decoder.missing_bytes <= _READ_BYTES:
            try:
                data = self._socket.recv(_READ_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            except OSError as error:
                raise WorkerLost(f"cannot read from the other side: {error.strerror}") from error
            if not data:
                raise WorkerLost("the other side is gone")
            self._ready = self._decoder.feed(data)
            self._ready.reverse()
        return self._ready.pop() if self._ready else None

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
