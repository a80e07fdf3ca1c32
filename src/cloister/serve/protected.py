"""Protected mode's start: new keys, sealed models unlocked by attestation, evidence over both."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from cloister.attest.attester import pick_attester
from cloister.attest.service import LoadedModel, ServiceIdentity
from cloister.errors import ConfigError
from cloister.serve.http.api import Api, Way
from cloister.serve.http.asgi import AsgiApp
from cloister.serve.http.evidence import EvidenceEndpoint
from cloister.serve.http.gateway import GatewayEndpoint
from cloister.serve.identity import ServerKeys, make_keys
from cloister.serve.listen import Listener, bind
from cloister.serve.registry import Registry
from cloister.serve.sources import parse_wanted
from cloister.serve.unlock import unlock_models
from cloister.settings import ServeSettings, Settings, settings_digest

SANDBOX = "none"
"""What confines a worker's handler, for evidence: an own process and a clean environment are no sandbox."""


async def start_protected(
    settings: Settings, api: Api, registry: Registry, stack: AsyncExitStack
) -> list[Listener]:
    """Load the sealed models into ``registry``, give ``api`` its evidence, and return the ports to open.

    1. The ports are bound, so that a taken one is known before any key is asked for.
    2. New TLS and OHTTP keys are made, in memory.
    3. The models are unlocked: the broker sees evidence of this machine, code and settings.
    4. Evidence for callers binds the keys, the settings and the loaded models.

    Raises:
        CloisterError: any of these failed; nothing is served.
    """
    keys = make_keys(settings.serve.host)
    listeners = _bind_listeners(settings.serve, api, keys, stack)
    digest = settings_digest(settings)
    attester = pick_attester(settings.attest, mr_config_id=digest)
    wanted = parse_wanted(settings.serve.models)
    await registry.load(await asyncio.to_thread(unlock_models, settings.serve, wanted, attester))
    identity = ServiceIdentity(
        tls_spki=keys.tls_spki,
        ohttp_key_config=keys.gateway.key_config,
        settings_digest=digest,
        models=_loaded_models(registry),
    )
    evidence = EvidenceEndpoint(attester, identity)
    stack.callback(evidence.close)
    api.attach(evidence=evidence.answer, gateway=GatewayEndpoint(keys.gateway, api.handle_sealed).answer)
    return listeners


def _bind_listeners(
    serve: ServeSettings, api: Api, keys: ServerKeys, stack: AsyncExitStack
) -> list[Listener]:
    listeners = []
    for port, way, tls in ((serve.https_port, Way.TLS, keys.tls), (serve.http_port, Way.PLAIN, None)):
        if port:
            sock = bind(serve.host, port)
            stack.callback(sock.close)
            listeners.append(Listener(sock, AsgiApp(api, way, body_timeout_s=serve.request_timeout_s), tls))
    if not listeners:
        raise ConfigError("serve.https_port and serve.http_port are both 0: nobody could reach the server")
    return listeners


def _loaded_models(registry: Registry) -> tuple[LoadedModel, ...]:
    return tuple(
        LoadedModel(
            name=model.name,
            version=model.version,
            container_digest=model.digest,
            signer=model.signer,
            sandbox=SANDBOX,
        )
        for model in registry
    )
