"""The keys of one issuer, kept up to date: fetched over HTTPS, or read from a file.

They are fetched at start, when they are an hour old, and when a token names one that is not among them, but
not more often than every ``RETRY_S``. Known keys go on being good while the issuer cannot be reached, for
``MAX_STALE_S``: who cuts a server off must not keep a withdrawn key alive.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, RSAKey

from cloister.errors import BadSignature, CloisterError, ConfigError, MalformedInput, TransportError
from cloister.serve.access.issuers import Issuer, check_issuer_url

MAX_DOCUMENT_BYTES = 1 << 18
MAX_KEYS = 100
MAX_AGE_S = 3600.0
MAX_STALE_S = 86_400.0
RETRY_S = 5.0
MIN_RSA_BITS = 2048
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519", "Ed25519": "Ed25519"}

Fetch = Callable[[str], bytes]


class IssuerKeys:
    """The keys of one issuer; safe to use from many threads."""

    def __init__(
        self, issuer: Issuer, *, fetch: Fetch | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """No key is fetched yet.

        Raises:
            ConfigError, MalformedInput: the file of authorities cannot be read, or is too long.
        """
        self._issuer = issuer
        self.authorities = _read_file(Path(issuer.ca)) if issuer.ca else b""
        """PEM that its TLS is checked against, read once: evidence speaks of it."""
        self._fetch = fetch or (lambda url: fetch_document(url, self.authorities))
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: KeySet | None = None
        self._wanted = False
        self._stamp: tuple[int, int, int] | None = None
        self._fetched = -MAX_AGE_S
        self._tried = -RETRY_S

    @property
    def public(self) -> list[dict[str, Any]]:
        """The keys of a file, which callers are known by; none of those that come by URL."""
        if not self._issuer.jwks_file or self._keys is None:
            return []
        return [dict(key.as_dict(private=False)) for key in self._keys.keys]

    def refresh(self, *, force: bool = False) -> bool:
        """Look whether they are due, which blocks on the network or a file; whether they were loaded anew.

        Raises:
            TransportError, ConfigError: they cannot be had; those that are known stay as they are.
            MalformedInput: the issuer's documents are not what they should be.
        """
        with self._lock:
            now = self._clock()
            if not self._is_due(now, force=force):
                return False
            self._tried, self._wanted = now, False
            self._keys = self._load()
            self._fetched = now
            return True

    def find(self, key_id: str | None, algorithm: str, *, may_ask: bool = True) -> Any:
        """The key that a token names.

        Args:
            may_ask: ask the issuer once more if it is not known, which blocks on the network.
        Raises:
            BadSignature: there is no such key for this algorithm.
            TransportError, MalformedInput: as ``refresh``.
        """
        for force in (False, True) if may_ask else (None,):
            if force is not None:
                self._ask(force=force)
            fitting = [key for key in self._known().keys if _fits(key, key_id, algorithm)]
            if len(fitting) == 1:
                return fitting[0]
        self._wanted = True  # it may be new: `refresh` asks for it
        raise BadSignature("the issuer has no such key for this token")

    def _ask(self, *, force: bool) -> None:
        try:
            self.refresh(force=force)
        except CloisterError:
            if self._keys is None:
                raise

    def _is_due(self, now: float, *, force: bool) -> bool:
        if self._issuer.jwks_file:
            stamp, self._stamp = self._stamp, _stamp(Path(self._issuer.jwks_file))
            return stamp != self._stamp
        if self._keys is None or force or self._wanted or now - self._fetched >= MAX_AGE_S:
            return now - self._tried >= RETRY_S
        return False

    def _known(self) -> KeySet:
        self._check_age(self._clock())
        assert self._keys is not None
        return self._keys

    def _check_age(self, now: float) -> None:
        hint = "the issuer is asked again every few seconds; the server's log says what is wrong"
        if self._keys is None:
            raise TransportError("the keys of the token's issuer could not be fetched yet", hint=hint)
        if not self._issuer.jwks_file and now - self._fetched >= MAX_STALE_S:
            raise TransportError("the keys of the token's issuer are too old to be relied on", hint=hint)

    def _load(self) -> KeySet:
        try:
            found = [dict(key) for key in json.loads(self._read())["keys"]]
            public = [key for key in found if key.get("kty") in ("EC", "RSA", "OKP") and "d" not in key]
            if len(public) > MAX_KEYS:
                raise MalformedInput(f"{self._issuer.url}: more than {MAX_KEYS} keys")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise MalformedInput(f"{self._issuer.url}: not a JWK set") from error
        keys = [key for document in public for key in _understood(document)]
        if public and not keys:
            raise MalformedInput(f"{self._issuer.url}: none of its {len(public)} keys can be read")
        for key in keys:
            if isinstance(key, RSAKey) and key.raw_value.key_size < MIN_RSA_BITS:
                raise MalformedInput(f"{self._issuer.url}: an RSA key of fewer than {MIN_RSA_BITS} bits")
        return KeySet(keys)

    def _read(self) -> bytes:
        if self._issuer.jwks_file:
            return _read_file(Path(self._issuer.jwks_file))
        return self._fetch(self._issuer.jwks_url or self._discover())

    def _discover(self) -> str:
        address = self._issuer.url.rstrip("/") + "/.well-known/openid-configuration"
        try:
            document = json.loads(self._fetch(address))
            named, url = document["issuer"], document["jwks_uri"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise MalformedInput(f"{self._issuer.url}: not a discovery document") from error
        if named != self._issuer.url or not isinstance(url, str):
            raise MalformedInput(f"{self._issuer.url}: its discovery document names another issuer")
        check_issuer_url(url)
        return url


def _understood(document: dict[str, Any]) -> list[Any]:
    """The key; none if it is of a curve or form that is not known here (RFC 7517, section 5)."""
    try:
        keys = KeySet.import_key_set({"keys": [document]}).keys
        return [key for key in keys if key.raw_value is not None]  # which is what reads its numbers
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, JoseError):
        return []


def fetch_document(url: str, authorities: bytes = b"") -> bytes:
    """One JSON document over HTTPS (or from loopback), without redirects.

    Args:
        authorities: PEM that its certificate is checked against; empty means the system's.
    Raises:
        ConfigError: the address may not be asked, or ``authorities`` are none.
        TransportError: nothing came, or too much.
    """
    check_issuer_url(url)
    try:
        verify = ssl.create_default_context(cadata=authorities.decode("ascii") or None)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(f"cannot use the authorities for {url}") from error
    try:
        with httpx.stream("GET", url, timeout=10.0, follow_redirects=False, verify=verify) as response:
            if response.status_code != httpx.codes.OK:
                raise TransportError(f"{url} answered HTTP status {response.status_code}")
            body = bytearray()
            for part in response.iter_bytes():
                body += part
                if len(body) > MAX_DOCUMENT_BYTES:
                    raise TransportError(f"{url} sends more than {MAX_DOCUMENT_BYTES} bytes")
            return bytes(body)
    except httpx.HTTPError as error:
        raise TransportError(f"cannot fetch {url}: {type(error).__name__}") from error


def _fits(key: Any, key_id: str | None, algorithm: str) -> bool:
    """Whether a key may have made a signature of this kind: one that names no key fits any of its kind."""
    curve = _CURVES.get(algorithm)
    if key.key_type != ("RSA" if curve is None else "OKP" if curve == "Ed25519" else "EC"):
        return False
    if curve is not None and key.curve_name != curve:
        return False
    named = {"EdDSA", "Ed25519"} if curve == "Ed25519" else {algorithm}
    return (
        (key_id is None or key.kid == key_id)
        and key.get("alg", algorithm) in named
        and key.get("use", "sig") == "sig"
        and "verify" in key.get("key_ops", ["verify"])
    )


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0, 0
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise MalformedInput(f"{path} has more than {MAX_DOCUMENT_BYTES} bytes")
    return raw
