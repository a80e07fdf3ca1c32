"""A KEK in a PKCS #11 token (HSM, smart card, SoftHSM): the key never leaves it, data keys go in and out.

URI (RFC 7512)::

    pkcs11:token=cloister;object=kek?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/pin

The object is an AES key of 256 bits. The PIN is in an owner-only file; ``pin-value`` is refused, because
settings are no place for secrets.

=============== ===== ============================================================================
wrapped key     bytes meaning
=============== ===== ============================================================================
nonce           12    random
data key        32    CKM_AES_GCM in the token; additional data: ``cloister-key`` NUL resource
tag             16
=============== ===== ============================================================================

Source: PKCS #11 v3.0, section 2.12 (AES-GCM); RFC 7512.
"""

from __future__ import annotations

import secrets
import threading
from typing import TYPE_CHECKING, Any

from cloister.crypto.keys import KEY_BYTES, SecretKey
from cloister.errors import BadCiphertext, ConfigError, KeyUnavailable, MissingDependencyError
from cloister.kbs.kek.gcm import NONCE_BYTES, OVERHEAD_BYTES, TAG_BYTES
from cloister.kbs.kek.provider import MAX_KEK_ID_CHARACTERS, WrappedKey, context
from cloister.kbs.kek.uri import parse_pairs, secret_file

if TYPE_CHECKING:
    import pkcs11

_PATH = ("token", "object", "type")
_QUERY = ("module-path", "pin-source")
_KEY_BITS = 256


class Pkcs11Kek:
    """See the module. One session for all threads: tokens allow few, and an operation takes microseconds."""

    local = False

    def __init__(self, *, module: str, token: str, label: str, pin: str | None) -> None:
        try:
            import pkcs11
        except ImportError as error:
            raise MissingDependencyError(
                "pkcs11: needs the package python-pkcs11", hint="pip install 'cloister[pkcs11]'"
            ) from error
        self._pkcs11 = pkcs11
        self._module, self._token, self._label, self._pin = module, token, label, pin
        self._lock = threading.Lock()
        self._key: Any = None
        self.key_id = f"pkcs11:{token}/{label}"
        if len(self.key_id) > MAX_KEK_ID_CHARACTERS:
            raise ConfigError("pkcs11: names of token and object are too long")
        with self._lock:
            self._open()

    def holds(self, kek_id: str) -> bool:
        """See ``KekProvider``."""
        return kek_id == self.key_id

    def wrap(self, key: SecretKey, resource: str) -> WrappedKey:
        """See ``KekProvider``."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = self._in_token("encrypt", key.raw, nonce, resource)
        if len(sealed) != KEY_BYTES + TAG_BYTES or key.raw in sealed:
            raise KeyUnavailable(f"token {self._token!r} did not encrypt the data key")
        return WrappedKey(self.key_id, nonce + sealed)

    def unwrap(self, wrapped: WrappedKey, resource: str) -> SecretKey:
        """See ``KekProvider``."""
        if wrapped.kek_id != self.key_id or len(wrapped.data) != OVERHEAD_BYTES + KEY_BYTES:
            raise BadCiphertext("a wrapped key is of another KEK, or has another length")
        nonce, sealed = wrapped.data[:NONCE_BYTES], wrapped.data[NONCE_BYTES:]
        return SecretKey(self._in_token("decrypt", sealed, nonce, resource))

    def renew(self) -> str:
        """A token's key is made with the token's own tools; see ``KekProvider``."""
        raise ConfigError(
            "a PKCS #11 KEK has no generations",
            hint="make another AES key in the token, name it in keys.kek, this one in keys.previous_keks",
        )

    def retire(self) -> None:
        """There is nothing older; see ``KekProvider``."""

    def __repr__(self) -> str:
        return f"Pkcs11Kek({self.key_id})"

    def _in_token(self, operation: str, data: bytes, nonce: bytes, resource: str) -> bytes:
        errors = self._pkcs11.exceptions
        lost = (
            *(errors.DeviceRemoved, errors.TokenNotPresent, errors.SessionHandleInvalid, errors.DeviceError),
            *(errors.SessionClosed, errors.UserNotLoggedIn, errors.KeyHandleInvalid),
        )
        # Some tokens report a tag that does not fit as a general error.
        mismatch = (errors.EncryptedDataInvalid, errors.EncryptedDataLenRange, errors.GeneralError)
        with self._lock:
            for attempt in (1, 2):
                try:
                    if self._key is None:
                        self._open()
                    parameters = self._pkcs11.GCMParams(nonce, context("cloister-key", resource), 128)
                    work = getattr(self._key, operation)
                    return bytes(
                        work(data, mechanism=self._pkcs11.Mechanism.AES_GCM, mechanism_param=parameters)
                    )
                except lost as error:
                    self._key = None
                    if attempt == 2:
                        raise KeyUnavailable(
                            f"token {self._token!r} is gone: {type(error).__name__}"
                        ) from error
                except errors.PKCS11Error as error:
                    if operation == "decrypt" and isinstance(error, mismatch):
                        raise BadCiphertext(
                            "a wrapped key does not open: changed, or of another KEK or resource"
                        ) from error
                    raise KeyUnavailable(f"token {self._token!r} failed: {type(error).__name__}") from error
        raise AssertionError("unreachable")

    def _open(self) -> None:
        errors, constants = self._pkcs11.exceptions, self._pkcs11
        try:
            library = constants.lib(self._module)
            session = self._session(library.get_token(token_label=self._token))
            try:
                key = session.get_key(
                    object_class=constants.ObjectClass.SECRET_KEY,
                    key_type=constants.KeyType.AES,
                    label=self._label,
                )
                bits = key.key_length
            except errors.PKCS11Error:
                session.close()
                raise
        except errors.NoSuchKey as error:
            raise ConfigError(
                f"token {self._token!r} has no AES key {self._label!r}",
                hint=f"pkcs11-tool --login --keygen --key-type AES:32 --label {self._label}",
            ) from error
        except errors.MultipleObjectsReturned as error:
            raise ConfigError(f"token {self._token!r} has several AES keys {self._label!r}") from error
        except errors.NoSuchToken as error:
            raise ConfigError(f"{self._module} has no token {self._token!r}") from error
        except (errors.PinIncorrect, errors.PinLocked, errors.PinInvalid, errors.PinLenRange) as error:
            raise ConfigError(f"token {self._token!r} refuses the PIN: {type(error).__name__}") from error
        except errors.PKCS11Error as error:
            reason = type(error).__name__
            raise ConfigError(f"PKCS #11 module {self._module} cannot be used: {reason}") from error
        if bits != _KEY_BITS:
            raise ConfigError(f"AES key {self._label!r} has {bits} bits, needed are {_KEY_BITS}")
        self._key = key

    def _session(self, token: pkcs11.Token) -> pkcs11.Session:
        try:
            return token.open(user_pin=self._pin)
        except self._pkcs11.exceptions.UserAlreadyLoggedIn:
            # By another KEK of this process: a login is the process's, not the session's.
            return token.open()


def pkcs11_provider(rest: str) -> Pkcs11Kek:
    """``pkcs11:token=...;object=...?module-path=...&pin-source=...``."""
    path, _, query = rest.partition("?")
    names = parse_pairs(path, ";", _PATH, "pkcs11 URI")
    options = parse_pairs(query, "&", _QUERY, "pkcs11 URI")
    for name, there in (("token", names), ("object", names), ("module-path", options)):
        if not there.get(name):
            raise ConfigError(f"pkcs11 URI: {name} is missing")
    return Pkcs11Kek(
        module=options["module-path"],
        token=names["token"],
        label=names["object"],
        pin=secret_file(options, "pin-source"),
    )
