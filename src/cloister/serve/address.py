"""Addresses to listen on, in TorchServe's form: ``http://host:port``, ``https://host``, ``unix:/path``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cloister.errors import ConfigError

# ConfigManager.ADDRESS_PATTERN, with IPv6 in brackets besides.
_ADDRESS = re.compile(
    r"(?:(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[^:^/\[\]]+)(?::(?P<port>[0-9]{1,5}))?/?)"
    r"|(?:unix:(?P<path>/.+))",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Address:
    """One place to listen: a host and port, or the path of a UNIX socket."""

    host: str
    port: int
    path: str = ""
    tls: bool = False

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return bool(self.path) or self.host in ("127.0.0.1", "localhost", "::1")


def parse_address(text: str, name: str) -> Address:
    """Parse the value of the setting ``name``.

    Raises:
        ConfigError: not an address.
    """
    match = _ADDRESS.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"{name}={text[:80]!r}: invalid binding address", hint="http://127.0.0.1:8080 or unix:/path"
        )
    if match["path"]:
        return Address("", 0, path=match["path"])
    tls = match["scheme"].lower() == "https"
    port = int(match["port"]) if match["port"] else (443 if tls else 80)
    if not 0 < port < 65_536:
        raise ConfigError(f"{name}={text[:80]!r}: no such port")
    return Address(match["host"].strip("[]"), port, tls=tls)
