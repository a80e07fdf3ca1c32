"""The gRPC ports of a server."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from cloister.errors import ConfigError
from cloister.serve.client_tls import read_client_ca
from cloister.serve.control import ModelControl
from cloister.serve.grpc.calls import Admit, admit_all, make_handler
from cloister.serve.grpc.health import HealthService
from cloister.serve.grpc.inference import InferenceService
from cloister.serve.grpc.management import ManagementService
from cloister.serve.grpc.messages import HEALTH, INFERENCE, MANAGEMENT
from cloister.serve.grpc.open_inference import OpenInferenceService
from cloister.serve.identity import TlsPair
from cloister.serve.registry import Registry
from cloister.settings import ServeSettings

MESSAGE_OVERHEAD_BYTES = 1 << 16
"""How much longer than its content a message may be: names, shapes, parameters."""
MAX_METADATA_BYTES = 16_384
MAX_CALLS = 4096
"""Calls in progress on one port; further ones are refused at once."""
OPEN_INFERENCE_NAMES = (
    "inference.GRPCInferenceService",
    "org.pytorch.serve.grpc.openinference.GRPCInferenceService",
)
"""The protocol's own name, and TorchServe's name for the same messages."""


class GrpcPort:
    """One port and the services on it.

    Args:
        services: generic handlers, made by ``make_handler``.
        tls: None for plain text.
        client_ca: PEM of the authorities of client certificates, which are required then; empty: none are.
    """

    def __init__(
        self,
        host: str,
        port: int,
        services: Sequence[Any],
        *,
        tls: TlsPair | None,
        max_request_bytes: int,
        connection_age_s: float = 0.0,
        client_ca: bytes = b"",
    ) -> None:
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._tls = tls
        self._client_ca = client_ca
        self._server = grpc.aio.server(
            options=_options(max_request_bytes, connection_age_s),
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        self._server.add_generic_rpc_handlers(tuple(services))
        self.port = 0
        """Where it listens, once it does."""

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            ConfigError: the address cannot be used.
        """
        try:
            if self._tls is None:
                self.port = self._server.add_insecure_port(self._address)
            else:
                pair = ((self._tls.key, self._tls.chain),)
                credentials = grpc.ssl_server_credentials(
                    pair, self._client_ca or None, require_client_auth=bool(self._client_ca)
                )
                self.port = self._server.add_secure_port(self._address, credentials)
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {self._address} for gRPC") from error
        await self._server.start()

    async def stop(self, *, drain_s: float) -> None:
        """Take no more calls, and let those in progress finish for at most ``drain_s``."""
        await self._server.stop(drain_s)

    @property
    def url(self) -> str:
        """Where people reach it."""
        host = self._address.rpartition(":")[0]
        return f"{'grpcs' if self._tls else 'grpc'}://{host}:{self.port}"


def inference_services(registry: Registry, admit: Admit = admit_all) -> list[Any]:
    """TorchServe's inference service, the Open Inference Protocol, and health for orchestrators."""
    inference, open_inference = InferenceService(registry), OpenInferenceService(registry)
    torchserve = f"{INFERENCE}.InferenceAPIsService"
    return [
        make_handler(torchserve, torchserve, inference, admit),
        *(
            make_handler(name, OPEN_INFERENCE_NAMES[0], open_inference, admit)
            for name in OPEN_INFERENCE_NAMES
        ),
        _health(registry, admit),
    ]


def management_services(
    registry: Registry, control: ModelControl, admit: Admit = admit_all, *, model_api: bool
) -> list[Any]:
    """TorchServe's management service, and health."""
    name = f"{MANAGEMENT}.ManagementAPIsService"
    service = ManagementService(control, model_api=model_api)
    return [make_handler(name, name, service, admit), _health(registry, admit)]


async def start_grpc(
    settings: ServeSettings,
    registry: Registry,
    control: ModelControl,
    stack: AsyncExitStack,
    *,
    admit: Admit = admit_all,
    admit_management: Admit = admit_all,
    management_is_guarded: bool = False,
    tls: TlsPair | None = None,
    drain_s: float = 30.0,
) -> list[GrpcPort]:
    """Open the gRPC ports that the settings name; ``stack`` closes them.

    Args:
        management_is_guarded: ``admit_management`` does refuse callers without a credential.
        tls: the attested key; a protected server has no gRPC without it.
    Raises:
        ConfigError: an address that cannot be used, or a setting that would weaken the server.
    """
    protected = settings.mode == "protected"
    if protected:
        if tls is None:
            raise ConfigError("protected mode has no gRPC without the attested key")
    elif settings.grpc_tls:
        tls = read_pair(settings.certificate, settings.private_key)
    host = settings.grpc_host or settings.host
    inference = inference_services(registry, admit)
    management = management_services(registry, control, admit_management, model_api=settings.model_api)
    wanted = [
        (host, settings.grpc_port, inference),
        (settings.grpc_management_host or host, settings.grpc_management_port, management),
    ]
    if protected and settings.grpc_management_port and not management_is_guarded:
        raise ConfigError("protected mode has no management by gRPC without a token")
    # The library can require certificates or not ask for any, and nothing in between.
    client_ca = read_client_ca(settings) if settings.client_certificates == "required" else b""
    ports: list[GrpcPort] = []
    for address, number, services in wanted:
        if not number:
            continue
        port = GrpcPort(
            address,
            number,
            services,
            tls=tls,
            max_request_bytes=settings.max_request_bytes,
            connection_age_s=settings.grpc_connection_age_s,
            client_ca=client_ca,
        )
        await port.start()
        stack.push_async_callback(port.stop, drain_s=drain_s)
        ports.append(port)
    return ports


def read_pair(certificate: str, private_key: str) -> TlsPair:
    """Chain and key from their PEM files.

    Raises:
        ConfigError: not both are set, or one cannot be read.
    """
    if not certificate or not private_key:
        raise ConfigError("serve.grpc_tls needs serve.certificate and serve.private_key")
    try:
        return TlsPair(key=Path(private_key).read_bytes(), chain=Path(certificate).read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read the certificate or key for gRPC: {error.strerror}") from error


def _health(registry: Registry, admit: Admit) -> Any:
    return make_handler(f"{HEALTH}.Health", f"{HEALTH}.Health", HealthService(registry, admit), admit_all)


def _options(max_request_bytes: int, age_s: float) -> list[tuple[str, int]]:
    options = [
        ("grpc.max_receive_message_length", max_request_bytes + MESSAGE_OVERHEAD_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        # Two servers must not share a port without knowing of each other.
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    if age_s:
        options.append(("grpc.max_connection_age_ms", int(age_s * 1000)))
        options.append(("grpc.max_connection_age_grace_ms", int(age_s * 1000)))
    return options
