"""The cache on its own machine: a UNIX socket that answers the users who are listed, by peer credentials.

One request and one answer per connection; integers are big-endian:

========= ======== ===== ==============================================================================
direction offset   size  field
========= ======== ===== ==============================================================================
request   0        2     length of the URI
request   2        rest  the URI, ASCII: ``kbs:///repository/type/tag``, maybe ``?version=n``
answer    0        1     outcome, see ``Outcome``
answer    1        4     length of what follows
answer    5        rest  the key, or why there is none (UTF-8)
========= ======== ===== ==============================================================================

The kernel says who the peer is (``SO_PEERCRED``: the user who called ``connect``), so the socket itself can
be opened by all.
"""

from __future__ import annotations

import contextlib
import enum
import os
import socket
import stat
import struct
import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from structlog.typing import FilteringBoundLogger

from cloister.errors import CloisterError, ConfigError, KeyUnavailable, MalformedInput, TransportError
from cloister.kbs.cache.keep import KeyKeep
from cloister.kbs.protocol import ResourcePath

MAX_URI_BYTES = 1024
MAX_ANSWER_BYTES = 1 << 24
REQUEST = struct.Struct(">H")
ANSWER = struct.Struct(">BI")
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))
_THREADS = 16
_TIMEOUT_S = 10.0


class Outcome(enum.IntEnum):
    """How a request ended, and so which error the client raises."""

    RELEASED = 0
    REFUSED = 1
    UNREACHABLE = 2
    MALFORMED = 3


class LocalServer:
    """Answers on a UNIX socket from ``start`` to ``close``.

    Args:
        path: of the socket; a stale one is replaced.
        uids: the users who may ask.
    Raises:
        ConfigError: the socket cannot be made, or another cache answers on it.
    """

    def __init__(self, path: Path, keep: KeyKeep, uids: Collection[int], log: FilteringBoundLogger) -> None:
        self._path = path
        self._keep = keep
        self._uids = frozenset(uids)
        self._log = log
        self._listener = _listen(path)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="cloister-cache")
        self._thread = threading.Thread(target=self._accept, name="cloister-cache-accept")

    def start(self) -> Self:
        """Begin to answer."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop, finish what was asked, and remove the socket."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        if self._thread.is_alive():
            self._thread.join()
        self._listener.close()
        self._pool.shutdown()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            self._pool.submit(self._answer, peer)

    def _answer(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):  # a peer that leaves has no answer
            peer.settimeout(_TIMEOUT_S)
            try:
                self._check_peer(peer)
                path = _read_request(peer)
                with self._keep.lend(path) as key:
                    _send(peer, Outcome.RELEASED, key)
                self._log.debug("served", resource=str(path))
                return
            except MalformedInput as error:
                outcome, reason = Outcome.MALFORMED, error.message
            except TransportError as error:
                outcome, reason = Outcome.UNREACHABLE, error.message
            except CloisterError as error:
                outcome, reason = Outcome.REFUSED, error.message
            self._log.warning("refused", reason=reason)
            _send(peer, outcome, memoryview(reason.encode()))

    def _check_peer(self, peer: socket.socket) -> None:
        uid = peer_uid(peer)
        if uid not in self._uids:
            raise KeyUnavailable(f"user {uid} may not ask this key cache")


def peer_uid(connection: socket.socket) -> int:
    """The user on the other end of a UNIX socket, as the kernel knows it."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    return int(_PEER.unpack(raw)[1])


def receive(connection: socket.socket, length: int) -> bytearray:
    """Exactly ``length`` bytes.

    Raises:
        MalformedInput: the other side sent less.
    """
    received = bytearray(length)
    view = memoryview(received)
    done = 0
    while done < length:
        count = connection.recv_into(view[done:])
        if not count:
            raise MalformedInput(f"the connection ended after {done} of {length} bytes")
        done += count
    return received


def _read_request(peer: socket.socket) -> ResourcePath:
    (length,) = REQUEST.unpack(receive(peer, REQUEST.size))
    if length > MAX_URI_BYTES:
        raise MalformedInput(f"a resource URI has at most {MAX_URI_BYTES} bytes, found {length}")
    try:
        return ResourcePath.from_uri(receive(peer, length).decode("ascii"))
    except UnicodeDecodeError as error:
        raise MalformedInput("a resource URI is ASCII") from error


def _send(peer: socket.socket, outcome: Outcome, content: memoryview) -> None:
    """Send one answer straight from where it lies."""
    peer.sendall(ANSWER.pack(outcome, len(content)))
    peer.sendall(content)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        listener.bind(str(path))
        path.chmod(0o666)  # Who may ask is decided by credentials, not by file rights.
        listener.listen(128)
    except BaseException as error:
        listener.close()
        if isinstance(error, OSError):
            raise ConfigError(f"cannot listen on {path}: {error.strerror or error}") from error
        raise
    return listener


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(f"{path} is there, and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise ConfigError(f"another key cache answers on {path}")
