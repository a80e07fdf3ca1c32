"""One port for several processes: a socket for each, among which the kernel spreads new connections."""

from __future__ import annotations

import socket

from cloister.errors import ConfigError


def share_port(first: socket.socket, count: int) -> list[socket.socket]:
    """``first``, which is bound and does not listen yet, and as many more of its address as make ``count``.

    ``first`` was bound without SO_REUSEPORT, which has shown that nobody else is there: with it, a second
    server would be given a part of the connections without a word. A UNIX socket knows no such thing, and is
    shared as it is. The caller holds all of them for as long as the server runs: what the kernel has put into
    the queue of a process that dies waits there for its successor.

    Raises:
        ConfigError: the address cannot be bound again.
    """
    if first.family == socket.AF_UNIX:
        return [first] + [first.dup() for _ in range(count - 1)]
    sockets, address = [first], first.getsockname()
    try:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for _ in range(count - 1):
            other = socket.socket(first.family, socket.SOCK_STREAM)
            sockets.append(other)
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            other.bind(address)
    except OSError as error:
        for other in sockets[1:]:
            other.close()
        raise ConfigError(
            f"cannot share port {address[1]} between frontends: {error.strerror}",
            hint="set serve.frontends = 1",
        ) from error
    return sockets
