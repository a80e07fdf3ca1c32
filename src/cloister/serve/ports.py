"""The ports of a server: which there are, what each offers, under which TLS."""

from __future__ import annotations

import contextlib
import socket
import stat
from contextlib import ExitStack
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, pkcs12

from cloister.errors import ConfigError
from cloister.serve.address import Address, parse_address
from cloister.serve.client_tls import ask_for_certificates
from cloister.serve.http.api import Api
from cloister.serve.http.asgi import AsgiApp
from cloister.serve.http.ways import Way
from cloister.serve.listen import Listener, bind
from cloister.serve.log import log
from cloister.serve.tls import TlsKeys
from cloister.settings import ServeSettings

OPEN_PORT = 8080
SOCKET_MODE = 0o660
"""Of a UNIX socket: its owner and group may connect."""
Place = tuple[Address, Way]


def open_places(serve: ServeSettings) -> list[Place]:
    """Where an open server listens, and for what.

    Raises:
        ConfigError: an address that cannot be.
    """
    first = Address(serve.host, serve.http_port or OPEN_PORT)
    way = Way.OPEN
    if serve.inference_address:
        first, way = parse_address(serve.inference_address, "serve.inference_address"), Way.INFERENCE
    places = [(first, way)]
    for name, kind in (("management", Way.MANAGEMENT), ("metrics", Way.METRICS)):
        text, port = getattr(serve, f"{name}_address"), getattr(serve, f"{name}_port")
        if not text and not port:
            continue
        address = parse_address(text, f"serve.{name}_address") if text else Address(serve.host, port)
        if address == places[0][0]:  # TorchServe puts both APIs behind one port then
            places[0] = (places[0][0], Way.ALL)
        else:
            places.append((address, kind))
    return places


def open_ports(serve: ServeSettings, api: Api, stack: ExitStack) -> list[Listener]:
    """Bind the ports of an open server; ``stack`` closes them.

    Raises:
        ConfigError: an address that cannot be used, or https without a certificate.
    """
    places = open_places(serve)
    for address, way in places:
        if way in (Way.MANAGEMENT, Way.ALL) and not address.is_local and not serve.token_auth:
            log.warning("whoever reaches the management API may use it", host=address.host, port=address.port)
    tls = server_tls(serve) if any(address.tls for address, _ in places) else None
    listeners = []
    for address, way in places:
        sock = bind_address(address)
        stack.callback(close_socket, sock, address)
        app = AsgiApp(api, way, body_timeout_s=serve.request_timeout_s)
        listeners.append(Listener(sock, app, tls if address.tls else None))
    return listeners


def bind_address(address: Address) -> socket.socket:
    """A bound socket, which does not accept yet.

    Raises:
        ConfigError: the address cannot be used.
    """
    if not address.path:
        return bind(address.host, address.port)
    path = Path(address.path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.bind(str(path))
        path.chmod(SOCKET_MODE)
    except OSError as error:
        sock.close()
        raise ConfigError(f"cannot listen on {path}: {error.strerror or error}") from error
    return sock


def close_socket(sock: socket.socket, address: Address) -> None:
    """Close a listening socket; a UNIX socket's path goes with it."""
    sock.close()
    if address.path:
        with contextlib.suppress(OSError):
            Path(address.path).unlink()


def server_tls(serve: ServeSettings) -> TlsKeys:
    """The configured key and certificate, for TLS 1.2 or newer: PEM files, or a PKCS #12 keystore.

    Raises:
        ConfigError: there is none, or it cannot be used.
    """
    try:
        if serve.keystore:
            keys = TlsKeys(_read_keystore(Path(serve.keystore), serve.keystore_password))
        elif serve.certificate and serve.private_key:
            parts = (Path(serve.private_key).read_bytes(), Path(serve.certificate).read_bytes())
            keys = TlsKeys(b"\n".join(parts))
        else:
            raise ConfigError("an address is https, and serve.certificate and serve.private_key are not set")
        keys.context()
    except (OSError, ValueError) as error:
        where = serve.keystore or serve.certificate
        raise ConfigError(f"cannot use the certificate of {where} and its key: {error}") from error
    return ask_for_certificates(keys, serve)


def _read_keystore(file: Path, password: str) -> bytes:
    key, certificate, others = pkcs12.load_key_and_certificates(file.read_bytes(), password.encode() or None)
    if key is None or certificate is None:
        raise ValueError("no key entry in the keystore")
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem + b"".join(item.public_bytes(Encoding.PEM) for item in (certificate, *others))


def _remove_stale(path: Path) -> None:
    """Take away a socket that a dead server left; never one that answers, or something else."""
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(facts.st_mode):
        raise OSError("there is something of this name that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError("another server listens there")
