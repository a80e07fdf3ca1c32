"""Asks a key cache on this machine. No evidence: the kernel tells the cache who asks."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from cloister.errors import CloisterError, KeyUnavailable, MalformedInput, TransportError
from cloister.kbs.cache.local import ANSWER, MAX_ANSWER_BYTES, REQUEST, Outcome, peer_uid, receive
from cloister.kbs.protocol import ResourcePath

_ERRORS: dict[Outcome, type[CloisterError]] = {
    Outcome.REFUSED: KeyUnavailable,
    Outcome.UNREACHABLE: TransportError,
    Outcome.MALFORMED: MalformedInput,
}


class CacheClient:
    """Asks the cache behind a UNIX socket for keys; in use like a ``BrokerClient``.

    A new connection for each request, so a cache that is started anew is found again. The process that
    answers must run as this user, as root, or as the owner of the socket's folder, where then nobody else may
    write.
    """

    def __init__(self, path: Path, *, timeout_s: float = 5.0) -> None:
        self._path = path
        self._timeout_s = timeout_s

    def get_resource(self, uri: str) -> bytes:
        """The secret bytes of ``kbs:///repository/type/tag``.

        Raises:
            KeyUnavailable: the cache refuses; the message carries its reason.
            TransportError: no cache is there, or it does not hold the key and cannot reach the broker.
            MalformedInput: not such a URI.
        """
        request = f"kbs:///{ResourcePath.from_uri(uri)}".encode("ascii")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(self._timeout_s)
                connection.connect(str(self._path))
                self._check_server(peer_uid(connection))
                # A cache that does not answer this user closes before it has read; its answer is there.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(REQUEST.pack(len(request)) + request)
                outcome, content = _read_answer(connection)
        except TimeoutError as error:
            raise TransportError(
                f"key cache {self._path} has not answered within {self._timeout_s:g} s"
            ) from error
        except OSError as error:
            raise TransportError(
                f"key cache {self._path} cannot be reached: {error.strerror or error}",
                hint="is it running (`cloister keys cache`)?",
            ) from error
        if outcome is Outcome.RELEASED:
            return content
        raise _ERRORS[outcome](content.decode("utf-8", "replace"))

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_server(self, uid: int) -> None:
        if uid in (0, os.geteuid()):
            return
        folder = self._path.parent.stat()
        if uid != folder.st_uid or folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise TransportError(f"user {uid}, who answers on {self._path}, is not one to take keys from")


def _read_answer(connection: socket.socket) -> tuple[Outcome, bytes]:
    try:
        number, length = ANSWER.unpack(receive(connection, ANSWER.size))
        outcome = Outcome(number)
        if length > MAX_ANSWER_BYTES:
            raise MalformedInput(f"an answer of {length} bytes")
        return outcome, bytes(receive(connection, length))
    except (MalformedInput, ValueError) as error:
        raise TransportError(f"key cache sent no usable answer: {error}") from error
