"""A frontend process: accepts connections, and hands their requests to the core over an inherited socket.

Started by the core only. The TLS key comes over that socket; nothing is read from a disk or the environment.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
from collections.abc import Sequence

import uvloop

from cloister.crypto.locked import forbid_dumps
from cloister.serve.faults import report_crashes_without_content
from cloister.serve.frontends.frames import Alive, PortSpec, Ready, Start
from cloister.serve.frontends.link import Link, RelayApi, RelayFront
from cloister.serve.hardening import die_with_parent
from cloister.serve.http.asgi import AsgiApp
from cloister.serve.http.cors import Cors
from cloister.serve.http.held import HeldBodies
from cloister.serve.http.ways import Way
from cloister.serve.listen import Listener, Listeners
from cloister.serve.log import configure_log, log, log_fault
from cloister.serve.tls import TlsKeys
from cloister.settings import ServeSettings

ALIVE_S = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until the core says that the end is near, or is gone."""
    parser = argparse.ArgumentParser(prog="cloister.serve.frontends.main")
    parser.add_argument("--fd", type=int, required=True, help="connected UNIX socket, inherited")
    parser.add_argument("--parent", type=int, required=True, help="process to end with")
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    forbid_dumps()
    for number in (signal.SIGINT, signal.SIGTERM):  # the core decides, and hears of these itself
        signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=options.fd)
    connection.setblocking(False)
    os.set_inheritable(options.fd, False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_serve(connection))
        except Exception as error:  # noqa: BLE001 (a traceback can hold what a caller sent)
            log.error("frontend failed", exception=type(error).__name__)
            return 1
    return 0


def end_now() -> None:
    """Nobody is left to answer anything: the connections end with the process."""
    os._exit(1)


async def _serve(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_fault)
    link = Link(end_now)
    await loop.create_unix_connection(lambda: link, sock=connection)
    start = await link.started
    configure_log(start.log_level)
    if start.protected:
        report_crashes_without_content()
    ports = open_relay(link, start)
    await ports.start()
    link.send(Ready())
    alive = loop.create_task(_say_alive(link))
    await link.draining.wait()
    await ports.stop()
    alive.cancel()


def open_relay(link: Link, start: Start) -> Listeners:
    """What ``start`` says to serve, not accepting yet."""
    origin, methods, headers = start.cors
    cors = Cors(ServeSettings(cors_origin=origin, cors_methods=methods, cors_headers=headers))
    held = HeldBodies(start.max_unfinished_bytes)
    apis = [
        RelayApi(
            link,
            place,
            max_request_bytes=start.max_request_bytes,
            cors=cors,
            traced=start.traced,
            held=held,
        )
        for place in range(len(start.ports))
    ]
    listeners = [
        _listener(port, api, start.body_timeout_s) for port, api in zip(start.ports, apis, strict=True)
    ]
    fronts = [
        RelayFront(api, Way(port.way), body_timeout_s=start.body_timeout_s)
        for port, api in zip(start.ports, apis, strict=True)
    ]
    return Listeners(listeners, drain_s=start.drain_s, fronts=fronts)


def _listener(port: PortSpec, api: RelayApi, body_timeout_s: float) -> Listener:
    sock = socket.socket(fileno=port.fd)
    sock.setblocking(False)
    os.set_inheritable(port.fd, False)
    tls = TlsKeys(port.pem, port.minimum, port.client_ca, port.client_required) if port.pem else None
    return Listener(sock, AsgiApp(api, Way(port.way), body_timeout_s=body_timeout_s), tls)


async def _say_alive(link: Link) -> None:
    while True:
        await asyncio.sleep(ALIVE_S)
        link.send(Alive())
