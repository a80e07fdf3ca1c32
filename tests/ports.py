"""Ports for servers that tests start as processes of their own.

A port that is free now may be gone when the server takes it, a second later: the system gives the same ones
to outgoing connections, and the suite runs in several processes. So these are none that the system gives to
anybody, and each process of the suite has its own.
"""

from __future__ import annotations

import itertools
import os
import secrets
import socket

FIRST, LAST = 15_000, 32_000
"""Linux takes 32768 to 60999 for outgoing connections."""


def _own_ports() -> itertools.cycle[int]:
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    place = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    size = (LAST - FIRST) // count
    ports = range(FIRST + place * size, FIRST + (place + 1) * size)
    begin = secrets.randbelow(size)  # another run of the suite may be going on
    return itertools.cycle([*ports[begin:], *ports[:begin]])


_PORTS = _own_ports()


def free_port() -> int:
    """A port of the loopback interface that is free, and that nobody else here will ask for soon."""
    for _ in range(LAST - FIRST):
        port = next(_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no port is free")
