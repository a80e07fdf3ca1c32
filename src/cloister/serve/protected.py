"""Protected mode's start: new keys, sealed models unlocked by attestation, evidence over both."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from cloister.attest.attester import pick_attester
from cloister.attest.service import LoadedModel, ServiceIdentity
from cloister.errors import ConfigError
from cloister.ohttp.gateway import Gateway
from cloister.serve.client_tls import ask_for_certificates
from cloister.serve.grpc_ports import open_grpc
from cloister.serve.http.api import Api
from cloister.serve.http.asgi import AsgiApp
from cloister.serve.http.evidence import EvidenceEndpoint
from cloister.serve.http.gateway import GatewayEndpoint
from cloister.serve.http.ways import Way
from cloister.serve.identity import OHTTP_KEMS, make_keys
from cloister.serve.listen import Listener, bind
from cloister.serve.log import log
from cloister.serve.registry import Registry
from cloister.serve.sources import parse_wanted
from cloister.serve.tls import TlsKeys
from cloister.serve.unlock import SealedStore
from cloister.settings import ServeSettings, Settings, settings_digest

UNKNOWN_SANDBOX = "unknown"
"""What evidence says of a model that has had no worker yet."""
OVERLAP_S = 600.0
"""Longer than a client relies on one verification (300 s by default)."""


async def start_protected(
    settings: Settings, api: Api, registry: Registry, stack: AsyncExitStack
) -> list[Listener]:
    """Load the sealed models into ``registry``, give ``api`` its evidence, and return the ports to open.

    1. The ports are bound, so that a taken one is known before any key is asked for.
    2. New TLS and OHTTP keys are made, in memory.
    3. The models are unlocked: the broker sees evidence of this machine, code and settings.
    4. Evidence for callers binds the keys, the settings, and the policy and models of when it is asked for.

    Raises:
        CloisterError: any of these failed; nothing is served.
    """
    keys = make_keys(settings.serve.host, kem=OHTTP_KEMS[settings.serve.ohttp_kem])
    tls = ask_for_certificates(keys.tls, settings.serve)
    listeners = _bind_listeners(settings.serve, api, tls, stack)
    digest = settings_digest(settings)
    attester = pick_attester(settings.attest, mr_config_id=digest)
    store = SealedStore(settings.serve, attester)
    api.control.use(store)
    await registry.load(await asyncio.to_thread(store.wanted, parse_wanted(settings.serve.models)))

    access = api.access
    if access is None:
        raise ConfigError("protected mode without access control")

    def identity() -> ServiceIdentity:
        return ServiceIdentity(
            tls_spki=keys.tls_spki,
            ohttp_key_config=keys.gateway.key_config,
            settings_digest=digest,
            policy_digest=access.policy_digest,
            callers_digest=access.callers_digest,
            models=_loaded_models(registry),
        )

    evidence = EvidenceEndpoint(attester, identity)
    stack.callback(evidence.close)
    gateway = GatewayEndpoint(
        keys.gateway,
        api.handle_sealed,
        max_request_bytes=settings.serve.max_request_bytes,
        pad_answers=settings.serve.pad_answers,
    )
    api.attach(evidence=evidence.answer, gateway=gateway)
    if settings.serve.ohttp_rotation_s > 0:
        rotation = asyncio.create_task(keep_rotating(keys.gateway, settings.serve.ohttp_rotation_s))
        stack.callback(rotation.cancel)
    await open_grpc(settings.serve, api, registry, stack, tls=keys.pem_pair())
    return listeners


async def keep_rotating(gateway: Gateway, every_s: float) -> None:
    """Give the gateway a new key again and again; the former one is accepted for ``OVERLAP_S`` at most.

    Who verified the service before the change still reaches it meanwhile; after that the gateway says that
    it does not know the key, and callers verify again.
    """
    overlap_s = min(OVERLAP_S, every_s / 2)
    while True:
        await asyncio.sleep(every_s - overlap_s)
        gateway.rotate()
        log.info("new OHTTP key", overlap_s=overlap_s)
        await asyncio.sleep(overlap_s)
        gateway.drop_former()


def _bind_listeners(serve: ServeSettings, api: Api, tls: TlsKeys, stack: AsyncExitStack) -> list[Listener]:
    ports = (
        (serve.https_port, Way.TLS, tls),
        (serve.http_port, Way.PLAIN, None),
        (serve.management_port, Way.MANAGEMENT, tls),
        (serve.metrics_port, Way.METRICS, tls),
    )
    listeners = []
    for port, way, of_port in ports:
        if port:
            sock = bind(serve.host, port)
            stack.callback(sock.close)
            app = AsgiApp(api, way, body_timeout_s=serve.request_timeout_s)
            listeners.append(Listener(sock, app, of_port))
    if not any(item.app.way in (Way.TLS, Way.PLAIN) for item in listeners):
        raise ConfigError("serve.https_port and serve.http_port are both 0: nobody could reach the server")
    return listeners


def _loaded_models(registry: Registry) -> tuple[LoadedModel, ...]:
    return tuple(
        LoadedModel(
            name=model.name,
            version=model.version,
            container_digest=model.digest,
            signer=model.signer,
            sandbox=model.supervisor.sandbox or UNKNOWN_SANDBOX,
        )
        for model in registry
    )
