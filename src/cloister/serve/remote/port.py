"""The frontend's port for worker hosts: whoever comes in has proved itself, and few can try at a time."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from typing import Any

from cloister.errors import CloisterError, MalformedInput, TransportError
from cloister.serve.log import log
from cloister.serve.remote import messages
from cloister.serve.remote.channel import PROOF_S, Channel, prove_each_other
from cloister.serve.remote.host import Catalogue, JoinedHost
from cloister.serve.remote.messages import Attach, Offer
from cloister.serve.remote.proof import Credentials, Demands
from cloister.serve.remote.renewal import Renewals, Standing
from cloister.serve.remote.tls import DATA, JOIN, LinkKey, peer_spki

FAREWELL_S = 2.0
"""How long the reason of a refusal may take to reach the one who is refused."""
HANDSHAKE_S = 5.0
BACKLOG = 128
MAX_STRANGERS = 128
"""Connections that have not proved themselves yet."""
MAX_STRANGERS_EACH = 16
"""Of these, from one address."""


class WorkerPort:
    """Accepts worker hosts and the connections of their workers."""

    def __init__(
        self,
        sock: socket.socket,
        key: LinkKey,
        own: Credentials,
        demands: Demands,
        catalogue: Catalogue,
        *,
        timeout_s: float,
        max_age_s: float,
    ) -> None:
        self._socket = sock
        self._key = key
        self._own = own
        self._demands = demands
        self._catalogue = catalogue
        self._timeout_s = timeout_s
        self._max_age_s = max_age_s
        self._strangers: Counter[str] = Counter()
        self._hosts: set[JoinedHost] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def hosts(self) -> list[JoinedHost]:
        """Who has joined."""
        return list(self._hosts)

    def start(self) -> None:
        """Begin to accept."""
        self._socket.setblocking(False)
        self._socket.listen(BACKLOG)
        self._spawn(self._accept())

    def hold(self) -> None:
        """Give no host anything new to run: the server is about to stop."""
        for host in self.hosts:
            host.hold()

    async def close(self) -> None:
        """Tell every host that this frontend stops, and accept nothing more."""
        for host in self.hosts:
            host.say_goodbye()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._socket.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(self._socket)
            except OSError as error:  # no descriptors left, or a peer that went away while it was accepted
                log.warning("worker port cannot accept", reason=error.strerror)
                await asyncio.sleep(0.1)
                continue
            source = str(address[0]) if address else "unknown"
            if self._strangers.total() >= MAX_STRANGERS or self._strangers[source] >= MAX_STRANGERS_EACH:
                sock.close()
                continue
            self._strangers[source] += 1
            self._spawn(self._receive(sock, source))

    async def _receive(self, sock: socket.socket, source: str) -> None:
        """One connection, from its first byte to its proof, and on if it is a host's."""
        known = False

        def become_known() -> None:
            nonlocal known
            if not known:
                known = True
                self._strangers[source] -= 1
                if not self._strangers[source]:
                    del self._strangers[source]

        channel = Channel()
        try:
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(
                lambda: channel, sock, ssl=self._key.server, ssl_handshake_timeout=HANDSHAKE_S
            )
            kind = None if channel.session is None else channel.session.selected_alpn_protocol()
            if kind == JOIN:
                host = await self._admit(channel)
                become_known()
                await self._keep(host)
            elif kind == DATA:
                await self._take_data(channel)
            else:
                raise MalformedInput("it speaks neither of the two protocols of this port")
        except CloisterError as error:
            log.warning("worker host refused", address=source, reason=error.message)
            channel.close()
            # TLS waits for the other side's farewell, which a stranger need not send.
            asyncio.get_running_loop().call_later(FAREWELL_S, channel.abort)
        except (OSError, TimeoutError) as error:
            # No TLS, or none that can be agreed on: a scanner, or something that is no worker host.
            log.debug("worker port: no handshake", address=source, reason=type(error).__name__)
            channel.abort()
        finally:
            become_known()
            if channel.session is None:
                sock.close()

    async def _admit(self, channel: Channel) -> JoinedHost:
        peer, transcript = await prove_each_other(
            channel, "frontend", own_spki=self._key.spki, own=self._own, demands=self._demands
        )
        kind: Any = Offer | messages.Refused
        offer: Any = await channel.receive(kind, limit=messages.MAX_CONTROL_BYTES, timeout_s=PROOF_S)
        if isinstance(offer, messages.Refused):
            raise TransportError(f"it refuses this frontend: {offer.reason}")
        standing = Standing(transcript, self._own, self._demands)
        renewals = Renewals(channel, standing, max_age_s=self._max_age_s)
        host = JoinedHost(channel, transcript.worker_spki, offer, renewals, self._catalogue, self._timeout_s)
        log.info(
            "worker host joined",
            host=host.name,
            address=host.address,
            tier="open" if peer.result is None else peer.result.tier.name.lower(),
            simulated=peer.result is not None and peer.result.simulated,
        )
        return host

    async def _keep(self, host: JoinedHost) -> None:
        self._hosts.add(host)
        reason = "the frontend stops"
        try:
            reason = await host.serve()
        finally:
            self._hosts.discard(host)
            log.warning("worker host gone", host=host.name, address=host.address, reason=reason)

    async def _take_data(self, channel: Channel) -> None:
        attach: Attach = await channel.receive(Attach, limit=messages.MAX_HELLO_BYTES, timeout_s=HANDSHAKE_S)
        spki = peer_spki(channel.session)
        for host in self._hosts:
            # The ticket says which worker; that it comes from the host that was given it, its TLS key says.
            if host.spki == spki and any(slot.ticket == attach.ticket for slot in host.slots):
                host.take_worker(attach, channel)
                return
        raise MalformedInput("no joined host with this key was given this ticket")

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
