"""A KEK in the transit engine of HashiCorp Vault or OpenBao: it never leaves there.

URI::

    vault:transit/cloister?address=https://vault:8200&token-file=/run/vault-token&ca=/etc/vault.pem

``transit`` is the engine's mount point, ``cloister`` the key: ``aes256-gcm96``, made by Vault's owner, not
exportable. ``namespace`` may be given too. Plain HTTP is taken on loopback only, which is where a Vault Agent
listens that holds the token itself; ``token-file`` may then be left out.

A wrapped key is Vault's own text, ``vault:v3:...``: version 3 of the key. Vault binds it to the associated
data ``cloister-key`` NUL resource (Vault 1.9 or later).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from cloister.crypto.keys import SecretKey
from cloister.errors import (
    BadCiphertext,
    ConfigError,
    KeyUnavailable,
    MalformedInput,
    MissingDependencyError,
)
from cloister.kbs.kek.provider import MAX_KEK_ID_CHARACTERS, WrappedKey, context
from cloister.kbs.kek.uri import parse_pairs, secret_file

TIMEOUT_S = 10.0
KEY_TYPE = "aes256-gcm96"
_NAME = re.compile(r"([\w./-]{1,60})/([\w.-]{1,60})")
_CIPHERTEXT = re.compile(rb"vault:v([1-9][0-9]{0,8}):[A-Za-z0-9+/=]+")
_QUERY = ("address", "token-file", "ca", "namespace")
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class VaultKek:
    """See the module."""

    local = False

    def __init__(
        self, *, mount: str, name: str, address: str, token: str | None, ca: str | None, namespace: str | None
    ) -> None:
        try:
            import hvac
            import requests
        except ImportError as error:
            raise MissingDependencyError(
                "vault: needs the package hvac", hint="pip install 'cloister[vault]'"
            ) from error
        self._hvac, self._requests = hvac, requests
        self._mount, self._name = mount, name
        session = requests.Session()
        session.trust_env = False  # No proxy and no netrc of the environment decides who sees data keys.
        self._client = hvac.Client(
            url=address, token=token, verify=ca or True, timeout=TIMEOUT_S, namespace=namespace,
            session=session, allow_redirects=False,
        )  # fmt: skip
        session.verify = ca or True
        self._prefix = f"vault:{mount}/{name}:v"
        key = self._read()
        if key.get("type") != KEY_TYPE:
            raise ConfigError(f"vault key {name!r} must be of type {KEY_TYPE}, found {key.get('type')!r}")
        if key.get("exportable"):
            raise ConfigError(f"vault key {name!r} is exportable", hint="make one that is not")

    @property
    def key_id(self) -> str:
        """See ``KekProvider``."""
        return f"{self._prefix}{self._read()['latest_version']}"

    def holds(self, kek_id: str) -> bool:
        """See ``KekProvider``."""
        return kek_id.startswith(self._prefix)

    def wrap(self, key: SecretKey, resource: str) -> WrappedKey:
        """See ``KekProvider``."""
        answer = self._call(
            self._transit.encrypt_data,
            plaintext=base64.b64encode(key.raw).decode("ascii"),
            associated_data=_associated(resource),
        )
        data = str(answer.get("ciphertext", "")).encode("ascii", "replace")
        version = _CIPHERTEXT.fullmatch(data)
        if version is None:
            raise KeyUnavailable("vault answered without a ciphertext")
        return WrappedKey(f"{self._prefix}{int(version[1])}", data)

    def unwrap(self, wrapped: WrappedKey, resource: str) -> SecretKey:
        """See ``KekProvider``."""
        version = _CIPHERTEXT.fullmatch(wrapped.data)
        if version is None or wrapped.kek_id != f"{self._prefix}{int(version[1])}":
            raise BadCiphertext("a wrapped key is of another KEK, or not Vault's")
        try:
            answer = self._call(
                self._transit.decrypt_data,
                ciphertext=wrapped.data.decode("ascii"),
                associated_data=_associated(resource),
            )
        except self._hvac.exceptions.InvalidRequest as error:
            raise BadCiphertext(
                "a wrapped key does not open: changed, of another resource, or of a version that is gone"
            ) from error
        try:
            return SecretKey(base64.b64decode(str(answer["plaintext"]), validate=True))
        except (KeyError, binascii.Error, ValueError, MalformedInput) as error:
            raise BadCiphertext("vault did not give a data key") from error

    def renew(self) -> str:
        """See ``KekProvider``."""
        self._call(self._transit.rotate_key)
        return self.key_id

    def retire(self) -> None:
        """Let Vault decrypt nothing but the newest version; see ``KekProvider``."""
        latest = int(self._read()["latest_version"])
        self._call(self._transit.update_key_configuration, min_decryption_version=latest)

    def __repr__(self) -> str:
        return f"VaultKek({self._prefix[:-2]})"

    @property
    def _transit(self) -> Any:
        return self._client.secrets.transit

    def _read(self) -> dict[str, Any]:
        try:
            return self._call(self._transit.read_key)
        except self._hvac.exceptions.InvalidPath as error:
            raise ConfigError(f"vault has no transit key {self._mount}/{self._name}") from error

    def _call(self, method: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
        errors = self._hvac.exceptions
        try:
            answer = method(name=self._name, mount_point=self._mount, **arguments)
        except (errors.InvalidRequest, errors.InvalidPath):
            raise
        except errors.VaultError as error:
            # Vault's texts may repeat what was sent; the type says enough.
            raise KeyUnavailable(f"vault refused: {type(error).__name__}") from error
        except (self._requests.RequestException, OSError, ValueError) as error:
            raise KeyUnavailable(f"vault cannot be reached: {type(error).__name__}") from error
        data = answer.get("data") if isinstance(answer, dict) else None
        return data if isinstance(data, dict) else {}


def vault_provider(rest: str) -> VaultKek:
    """``vault:mount/key?address=...``."""
    path, _, query = rest.partition("?")
    options = parse_pairs(query, "&", _QUERY, "vault URI")
    named = _NAME.fullmatch(path.removeprefix("//"))
    if named is None or "address" not in options or len(path) > MAX_KEK_ID_CHARACTERS - 30:
        raise ConfigError("vault URI must be vault:MOUNT/KEY?address=https://...")
    where = urlsplit(options["address"])
    if where.scheme != "https" and not (where.scheme == "http" and where.hostname in _LOOPBACK):
        raise ConfigError("vault URI: the address must begin with https://, or be a Vault Agent on loopback")
    return VaultKek(
        mount=named[1],
        name=named[2],
        address=options["address"],
        token=secret_file(options, "token-file"),
        ca=options.get("ca"),
        namespace=options.get("namespace"),
    )


def _associated(resource: str) -> str:
    return base64.b64encode(context("cloister-key", resource)).decode("ascii")
