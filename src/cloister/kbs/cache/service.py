"""``run_cache``: the key cache as one blocking call, from settings to exit."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from structlog.typing import FilteringBoundLogger

from cloister.attest.attester import pick_attester
from cloister.attest.model import Attester
from cloister.crypto.locked import LockedSecret, forbid_dumps
from cloister.errors import CloisterError, ConfigError
from cloister.kbs.appraiser import Appraiser
from cloister.kbs.cache.desk import SiblingDesk
from cloister.kbs.cache.identity import MeasuredFiles, cache_digest, file_in_memory
from cloister.kbs.cache.keep import KeyKeep
from cloister.kbs.cache.local import LocalServer
from cloister.kbs.cache.tls import tls_pem
from cloister.kbs.client import BrokerClient
from cloister.kbs.logs import json_logger
from cloister.kbs.server import QuietServer, ReleaseRoutes, bind, https_config
from cloister.kbs.sessions import SessionTable
from cloister.kbs.source import lock_from_first
from cloister.kbs.trust import endorsements_source
from cloister.settings import CacheSettings, Settings


def run_cache(settings: Settings) -> None:
    """Hold keys and serve them until SIGTERM or SIGINT.

    1. Core dumps are forbidden, and memory can be locked, before there is a secret.
    2. The Attester shows the digest of the settings and of the files that they name.
    3. Every configured key is asked for. A broker that cannot be reached does not stop the start.
    4. Sockets open; from now on a thread renews the leases.
    5. At the end every key is overwritten.

    Raises:
        ConfigError: a setting, file, socket or the machine does not allow it.
    """
    cache = settings.cache
    log = json_logger(cache.log_level)
    if not (cache.socket or cache.port):
        raise ConfigError("cache.socket is empty and cache.port is 0: nobody could ask this cache")
    if not cache.uris:
        raise ConfigError("cache.uris is empty: this cache may hold no key")
    forbid_dumps()
    LockedSecret(1, required=cache.require_locked_memory).drop()
    files = MeasuredFiles.read(cache)
    attester = pick_attester(settings.attest, mr_config_id=cache_digest(settings, files))
    with contextlib.ExitStack() as stack:
        keep = _open_keep(cache, files, attester, stack)
        _renew(keep, log)
        if cache.socket:
            uids = cache.allowed_uids or (os.geteuid(),)
            local = LocalServer(Path(cache.socket), keep, uids, log).start()
            stack.callback(local.close)
        stop = threading.Event()
        renewals = threading.Thread(target=_renew_until, args=(stop, keep, log), name="cloister-renewals")
        renewals.start()
        stack.callback(renewals.join)
        stack.callback(stop.set)
        if cache.port:
            _serve_https(cache, files, keep, log, stack)
        else:
            log.info("listening", socket=cache.socket)
            _wait_for_signal()
    log.info("stopped")


def _open_keep(
    cache: CacheSettings, files: MeasuredFiles, attester: Attester, stack: contextlib.ExitStack
) -> KeyKeep:
    with contextlib.ExitStack() as reading:
        ca = reading.enter_context(file_in_memory(files.broker_ca)) if files.broker_ca else None
        brokers = [
            stack.enter_context(BrokerClient(url, attester=attester, ca=ca, timeout_s=cache.broker_timeout_s))
            for url in cache.broker.split()
        ]
    if not brokers:
        raise ConfigError("cache.broker is empty: there is nobody to get keys from")
    uris = (*cache.uris, cache.tls) if cache.tls else cache.uris
    keep = KeyKeep(
        uris,
        lambda uri: lock_from_first(brokers, uri, required=cache.require_locked_memory),
        lambda: time.clock_gettime(time.CLOCK_BOOTTIME),  # a paused machine does not stretch a lease
        lease_s=cache.lease_s,
        grace_s=cache.grace_s,
        patience_s=cache.broker_timeout_s + 0.5,
    )
    stack.callback(keep.clear)
    return keep


def _renew(keep: KeyKeep, log: FilteringBoundLogger) -> None:
    done = keep.renew()
    if done.renewed:
        log.info("leased", resources=list(done.renewed))
    for uri, reason in done.dropped:
        log.warning("dropped", resource=uri, reason=reason)
    if done.failed:
        log.warning("broker failed", reason=done.failed, held=len(keep))


def _renew_until(stop: threading.Event, keep: KeyKeep, log: FilteringBoundLogger) -> None:
    while not stop.wait(keep.wait_s()):
        try:
            _renew(keep, log)
        except Exception as error:  # noqa: BLE001  (one bad round must not end all renewals)
            log.error("renewal failed", error=type(error).__name__)


def _serve_https(
    cache: CacheSettings,
    files: MeasuredFiles,
    keep: KeyKeep,
    log: FilteringBoundLogger,
    stack: contextlib.ExitStack,
) -> None:
    if not cache.reference_values:
        raise ConfigError("cache.reference_values is empty: no TEE could attest to this cache")
    reference_values = files.parse_reference_values()
    root = files.parse_simulated_root()
    if root is not None:
        log.warning("a simulated root is trusted: keys may go to TEEs that protect nothing")
    appraiser = Appraiser(
        reference_values=lambda: reference_values,
        endorsements=endorsements_source(cache.collateral),
        simulated_root=root,
    )
    desk = SiblingDesk(
        keep,
        SessionTable(cache.session_ttl_s),
        appraiser=appraiser,
        policy=files.parse_policy(),
        token_ttl_s=cache.token_ttl_s,
        log=log,
    )
    listener = stack.enter_context(bind(cache.host, cache.port))
    with tls_pem(cache, keep, datetime.now(UTC)) as pem:
        config = https_config(create_app(desk, log), pem, pem)
        config.load()
    host, port = listener.getsockname()[:2]
    log.info("listening", socket=cache.socket, url=f"https://{f'[{host}]' if ':' in host else host}:{port}")
    QuietServer(config).run(sockets=[listener])


def create_app(desk: SiblingDesk, log: FilteringBoundLogger) -> Starlette:
    """The cache as an ASGI application."""
    routes = ReleaseRoutes(desk, log)
    kinds: tuple[Any, ...] = (CloisterError, HTTPException, ClientDisconnect, Exception)
    return Starlette(routes=routes.table(), exception_handlers=dict.fromkeys(kinds, routes.on_error))


def _wait_for_signal() -> None:
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
