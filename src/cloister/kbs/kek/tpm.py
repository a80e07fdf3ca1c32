"""A KEK that only this machine's TPM 2.0 gives back, and with ``pcrs`` only after the same boot.

As with a file the broker has the KEK in its memory while it runs, and it can be rotated and split into
shares. But the file holds only what the TPM has sealed: on another machine, or after another boot, it is
worth nothing.

``tpm:/var/lib/cloister/kek.tpm?pcrs=4,7,11&tcti=device:/dev/tpmrm0``

| member of a generation in the file | meaning |
|---|---|
| ``public`` | TPM2B_PUBLIC of the sealed object, base64; its policy is that of ``pcrs`` |
| ``private`` | TPM2B_PRIVATE, base64: encrypted by the storage key of the owner hierarchy |
| ``pcrs`` | SHA-256 PCRs whose values were sealed to |

A KEK's name is that of the key itself, as in a file, so records open also after a recovery into a file. What
goes over the bus to the TPM is encrypted to its storage key. New firmware or a new kernel changes PCRs: take
``pcrs`` out of the URI and rotate before the update, put it back and rotate after it.

Source: TCG Trusted Platform Module Library 2.0, part 3: TPM2_Create, TPM2_Unseal, TPM2_PolicyPCR.
"""

from __future__ import annotations

import base64
import importlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from cloister.crypto.keys import SecretKey
from cloister.errors import ConfigError, KeyUnavailable, MalformedInput, MissingDependencyError
from cloister.kbs.kek.file import FileKek, file_path
from cloister.kbs.kek.uri import parse_pairs

DEFAULT_TCTI = "device:/dev/tpmrm0"
_QUERY = ("pcrs", "tcti")
_STORAGE_KEY = "ecc256:aes128cfb"
_ATTRIBUTES = "fixedtpm|fixedparent|noda"
_VERSION = 1


class Sealed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One generation of the KEK as it is in the file."""

    public: str
    private: str
    pcrs: list[int]


class SealedFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file."""

    version: int
    generations: list[Sealed]


class TpmKek(FileKek):
    """See the module; the file is made on first use.

    Args:
        pcrs: SHA-256 PCRs that must have the values of the day when it was sealed; none: any boot will do.
        tcti: how to reach the TPM, as tpm2-tools write it.
    Raises:
        ConfigError: the file is not one of this TPM, or the PCRs have other values now.
        KeyUnavailable: no TPM there, or it fails.
        MissingDependencyError: tpm2-pytss, or the libraries that it needs, are not installed.
    """

    def __init__(self, path: Path, *, pcrs: Sequence[int] = (), tcti: str = DEFAULT_TCTI) -> None:
        self._pytss = _load_pytss()
        self._pcrs = sorted(set(pcrs))
        self._tcti = tcti
        self._device = threading.Lock()
        super().__init__(path)

    def __repr__(self) -> str:
        return f"TpmKek({self._newest})"

    def _encode(self, keys: Sequence[SecretKey]) -> bytes:
        with self._tpm() as (tpm, parent):
            generations = [self._seal(tpm, parent, key) for key in keys]
        return msgspec.json.encode(SealedFile(version=_VERSION, generations=generations))

    def _decode(self, raw: bytes) -> list[SecretKey]:
        try:
            sealed = msgspec.json.decode(raw, type=SealedFile)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{self.path} does not hold a KEK that a TPM has sealed") from error
        if sealed.version != _VERSION:
            raise ConfigError(f"{self.path} has version {sealed.version}, this broker reads {_VERSION}")
        with self._tpm() as (tpm, parent):
            return [self._unseal(tpm, parent, generation) for generation in sealed.generations]

    def _seal(self, tpm: Any, parent: Any, key: SecretKey) -> Sealed:
        pytss = self._pytss
        options: dict[str, Any] = {"objectAttributes": f"{_ATTRIBUTES}|userwithauth"}
        if self._pcrs:
            options = {"objectAttributes": _ATTRIBUTES, "authPolicy": self._policy(tpm)}
        template = pytss.TPM2B_PUBLIC.parse("keyedhash", **options)
        secret = pytss.TPM2B_SENSITIVE_CREATE(pytss.TPMS_SENSITIVE_CREATE(data=key.raw))
        with self._session(tpm, parent, pytss.TPM2_SE.HMAC) as session:
            private, public, *_ = tpm.create(parent, secret, template, session1=session)
        return Sealed(public=_base64(public), private=_base64(private), pcrs=self._pcrs)

    def _unseal(self, tpm: Any, parent: Any, sealed: Sealed) -> SecretKey:
        pytss = self._pytss
        kind = pytss.TPM2_SE.POLICY if sealed.pcrs else pytss.TPM2_SE.HMAC
        try:
            public, _ = pytss.TPM2B_PUBLIC.unmarshal(base64.b64decode(sealed.public, validate=True))
            private, _ = pytss.TPM2B_PRIVATE.unmarshal(base64.b64decode(sealed.private, validate=True))
            handle = tpm.load(parent, private, public)
            try:
                with self._session(tpm, parent, kind) as session:
                    if sealed.pcrs:
                        tpm.policy_pcr(session, pytss.TPM2B_DIGEST(), self._selection(sealed.pcrs))
                    return SecretKey(bytes(tpm.unseal(handle, session1=session)))
            finally:
                tpm.flush_context(handle)
        except (ValueError, MalformedInput) as error:
            raise ConfigError(f"{self.path} does not hold a KEK that a TPM has sealed") from error
        except pytss.TSS2_Exception as error:
            shown = ", ".join(map(str, sealed.pcrs)) or "none"
            raise ConfigError(
                f"the TPM does not unseal {self.path}: sealed by another TPM, or with other PCRs {shown}",
                hint="recover the KEK from its shares: cloister keys recovery combine",
            ) from error

    def _policy(self, tpm: Any) -> Any:
        """Digest of the policy that the PCRs have the values that they have now."""
        pytss = self._pytss
        session = tpm.start_auth_session(
            tpm_key=pytss.ESYS_TR.NONE,
            bind=pytss.ESYS_TR.NONE,
            session_type=pytss.TPM2_SE.TRIAL,
            symmetric=pytss.TPMT_SYM_DEF(algorithm=pytss.TPM2_ALG.NULL),
            auth_hash=pytss.TPM2_ALG.SHA256,
        )
        try:
            tpm.policy_pcr(session, pytss.TPM2B_DIGEST(), self._selection(self._pcrs))
            return tpm.policy_get_digest(session)
        finally:
            tpm.flush_context(session)

    def _selection(self, pcrs: Sequence[int]) -> Any:
        return self._pytss.TPML_PCR_SELECTION.parse(f"sha256:{','.join(map(str, pcrs))}")

    @contextmanager
    def _session(self, tpm: Any, parent: Any, kind: Any) -> Iterator[Any]:
        """A session whose parameters are encrypted under a key that only the TPM shares."""
        pytss = self._pytss
        cipher = pytss.TPMT_SYM_DEF(
            algorithm=pytss.TPM2_ALG.AES,
            keyBits=pytss.TPMU_SYM_KEY_BITS(sym=128),
            mode=pytss.TPMU_SYM_MODE(sym=pytss.TPM2_ALG.CFB),
        )
        session = tpm.start_auth_session(
            tpm_key=parent,
            bind=pytss.ESYS_TR.NONE,
            session_type=kind,
            symmetric=cipher,
            auth_hash=pytss.TPM2_ALG.SHA256,
        )
        attributes = pytss.TPMA_SESSION
        try:
            wanted = attributes.ENCRYPT | attributes.DECRYPT | attributes.CONTINUESESSION
            tpm.trsess_set_attributes(session, wanted)
            yield session
        finally:
            tpm.flush_context(session)

    @contextmanager
    def _tpm(self) -> Iterator[tuple[Any, Any]]:
        """The TPM, and the storage key that it makes anew, always the same, until it is cleared."""
        pytss = self._pytss
        with self._device:
            try:
                with pytss.ESAPI(self._tcti) as tpm:
                    parent, *_ = tpm.create_primary(None, _STORAGE_KEY, pytss.ESYS_TR.OWNER)
                    try:
                        yield tpm, parent
                    finally:
                        tpm.flush_context(parent)
            except (pytss.TSS2_Exception, OSError) as error:
                raise KeyUnavailable(f"the TPM at {self._tcti} fails: {error}") from error


def tpm_provider(rest: str) -> TpmKek:
    """``tpm:/path?pcrs=4,7,11&tcti=device:/dev/tpmrm0``."""
    path, _, query = rest.partition("?")
    options = parse_pairs(query, "&", _QUERY, "tpm URI")
    numbers = [part for part in options.get("pcrs", "").split(",") if part]
    if not all(part.isascii() and part.isdigit() and int(part) < 24 for part in numbers):
        raise ConfigError("tpm URI: pcrs are numbers from 0 to 23, separated by commas")
    if not path.removeprefix("//"):
        raise ConfigError("tpm URI must be tpm:/path/of/the/sealed/file")
    return TpmKek(
        file_path(path), pcrs=[int(part) for part in numbers], tcti=options.get("tcti", DEFAULT_TCTI)
    )


def _load_pytss() -> Any:
    try:
        return importlib.import_module("tpm2_pytss")
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            "tpm: needs tpm2-pytss and the system's tpm2-tss libraries", hint="pip install 'cloister[tpm]'"
        ) from error


def _base64(part: Any) -> str:
    return base64.b64encode(bytes(part.marshal())).decode("ascii")
