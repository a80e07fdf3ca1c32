"""Idle connections and slow senders until stdin ends. Arguments: host, port, path, how many of each."""

from __future__ import annotations

import resource
import select
import socket
import sys
import time


def main() -> None:
    """Open them, say how many, and go on until told to stop."""
    host, port, path, idle, slow = sys.argv[1:6]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    connections = []
    for _ in range(int(idle) + int(slow)):
        try:
            connections.append(socket.create_connection((host, int(port)), timeout=10))
        except OSError:
            break
    senders = connections[: int(slow)]
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    head += "content-length: 100000\r\n\r\n["
    for sender in senders:
        sender.sendall(head.encode())
    print(len(connections), flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        for sender in senders:
            sender.sendall(b"1")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
