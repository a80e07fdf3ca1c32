"""One port for several processes."""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from cloister.errors import ConfigError
from cloister.serve.frontends.sockets import share_port
from cloister.serve.listen import bind


def accepted(sock: socket.socket, stack: ExitStack) -> int:
    """How many connections wait at this socket."""
    sock.setblocking(False)
    count = 0
    with suppress(BlockingIOError):
        while True:
            stack.enter_context(sock.accept()[0])
            count += 1
    return count


def test_connections_are_spread() -> None:
    """Each of the sockets gets some of the connections, together they get all."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(item) for item in share_port(bind("127.0.0.1", 0), 3)]
        assert len({item.getsockname() for item in sockets}) == 1
        for item in sockets:
            item.listen(128)
        for _ in range(60):
            stack.enter_context(socket.create_connection(sockets[0].getsockname()))
        counts = [accepted(item, stack) for item in sockets]
        assert sum(counts) == 60
        assert min(counts) > 0


def test_second_server_is_refused() -> None:
    """Whoever binds as a server does learns that the port is taken, shared as it is."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(item) for item in share_port(bind("127.0.0.1", 0), 2)]
        for item in sockets:
            item.listen()
        with pytest.raises(ConfigError, match="cannot listen"):
            bind("127.0.0.1", sockets[0].getsockname()[1])


def test_unix_socket_is_one(tmp_path: Path) -> None:
    """A UNIX socket is shared by its descriptor: what one does not accept, the other does."""
    with ExitStack() as stack:
        first = stack.enter_context(socket.socket(socket.AF_UNIX))
        first.bind(str(tmp_path / "s"))
        _, other = share_port(first, 2)
        stack.enter_context(other)
        other.listen()
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(tmp_path / "s"))
            assert accepted(first, stack) == 1


def test_address_that_cannot_be_shared() -> None:
    """If somebody took the address meanwhile, that is a configuration error that says what to do."""
    with socket.socket() as taken, bind("127.0.0.1", 0) as first:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(first.getsockname())
        taken.listen()
        with pytest.raises(ConfigError, match="cannot share port") as caught:
            share_port(first, 2)
        assert "serve.frontends = 1" in (caught.value.hint or "")
