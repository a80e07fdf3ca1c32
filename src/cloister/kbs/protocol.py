"""Messages of the Trustee KBS protocol 0.4.0 (RCAR), both sides. No I/O, no clock.

==== =================================== ========================= ==================================
step request                             answer                    also
==== =================================== ========================= ==================================
1    POST /kbs/v0/auth      ``Request``      ``Challenge``         sets cookie ``kbs-session-id``
2    POST /kbs/v0/attest    ``Attestation``  ``TokenAnswer``       wants the cookie
3    GET  /kbs/v0/resource/{r}/{t}/{tag}     JWE                   wants the cookie, or a bearer token
==== =================================== ========================= ==================================

An error is ``{"type": ERROR_TYPE_PREFIX + variant, "detail"}``; two variants are 404, all others 401, a
missing resource included, and the client attests again on each 401.

Sources: Trustee, kbs/docs/kbs_attestation_protocol.md; kbs-types, src/lib.rs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from cloister.crypto.jwe import TeePublicKey
from cloister.errors import MalformedInput

VERSION = "0.4.0"
COOKIE = "kbs-session-id"
HASH_ALGORITHM = "sha384"
SUPPORTED_HASH_ALGORITHMS = ("sha256", "sha384", "sha512")
_PREFERRED = (HASH_ALGORITHM, "sha512", "sha256")
NONCE_BYTES = 32
TEES = frozenset(
    {"snp", "tdx", "sgx", "cca", "csv", "se", "tpm", "nvidia", "sample", "sampledevice"}
    | {"az-snp-vtpm", "az-tdx-vtpm", "hygondcu"}
)
T = TypeVar("T", bound=msgspec.Struct)

ERROR_TYPE_PREFIX = "https://github.com/confidential-containers/kbs/errors/"
NOT_FOUND_VARIANTS = frozenset({"InvalidRequestPath", "PluginNotFound"})

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_URI = re.compile(r"kbs://(?P<authority>[^/?#]*)/(?P<path>[^?#]*)(?:\?version=(?P<version>[1-9][0-9]{0,8}))?")


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Step 1, from the TEE."""

    version: str
    tee: str
    extra_params: Any = msgspec.field(name="extra-params", default="")


class Challenge(msgspec.Struct, frozen=True, kw_only=True):
    """Step 1, the broker's answer."""

    nonce: str
    extra_params: Any = msgspec.field(name="extra-params", default="")


class InitData(msgspec.Struct, frozen=True, kw_only=True):
    """Configuration that was measured when the TEE started."""

    format: str
    body: str


class RuntimeData(msgspec.Struct, frozen=True, kw_only=True):
    """What the evidence is bound to."""

    tee_pubkey: dict[str, Any] = msgspec.field(name="tee-pubkey")
    nonce: str = ""


class TeeEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """Evidence of the CPU, and of devices as JSON text."""

    primary_evidence: Any
    additional_evidence: str = ""


class Attestation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Step 2, from the TEE."""

    runtime_data: RuntimeData = msgspec.field(name="runtime-data")
    tee_evidence: Any = msgspec.field(name="tee-evidence")
    init_data: InitData | None = msgspec.field(name="init-data", default=None)

    def evidence(self) -> TeeEvidence:
        """The composite evidence (a plain value is legal in older messages and not accepted here)."""
        return _converted(self.tee_evidence, TeeEvidence, "tee-evidence")


class TokenAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Step 2, the broker's answer."""

    token: str


class ResourceAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Step 3, the broker's answer: a JWE in flattened form."""

    protected: str
    encrypted_key: str
    iv: str
    ciphertext: str
    tag: str
    aad: str | None = None


class ErrorInformation(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong."""

    type: str
    detail: str

    @classmethod
    def of(cls, variant: str, detail: str) -> ErrorInformation:
        """The error body of one variant; ``detail`` becomes one line."""
        return cls(type=ERROR_TYPE_PREFIX + variant, detail=" ".join(detail.split()))


def status_of(variant: str) -> int:
    """HTTP status of an error variant."""
    return 404 if variant in NOT_FOUND_VARIANTS else 401


def parse(raw: bytes, form: type[T]) -> T:
    """Read one message.

    Raises:
        MalformedInput: not JSON, or not of this form.
    """
    try:
        return msgspec.json.decode(raw, type=form)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedInput(f"{form.__name__}: {error}") from error


def render(message: msgspec.Struct) -> bytes:
    """Write one message as compact JSON."""
    return msgspec.json.encode(message)


def check_request(request: Request) -> str:
    """Establish that we can talk to this client; returns the hash algorithm that binds its evidence.

    It is SHA-384 for every client that offers it or offers nothing, as Trustee's own guests expect; else the
    longest one that is offered.

    Raises:
        MalformedInput: another protocol version, an unknown TEE, or no hash algorithm in common.
    """
    if request.version != VERSION:
        raise MalformedInput(f"protocol version must be {VERSION}, found {request.version[:20]!r}")
    if request.tee not in TEES:
        raise MalformedInput(f"unknown TEE {request.tee[:20]!r}")
    if isinstance(request.extra_params, dict):
        offered = request.extra_params.get("supported-hash-algorithms", [HASH_ALGORITHM])
        known = {str(item).lower() for item in offered} if isinstance(offered, list) else set()
        for algorithm in _PREFERRED:
            if algorithm in known:
                return algorithm
        raise MalformedInput(f"this broker needs a hash algorithm of {', '.join(_PREFERRED)}")
    return HASH_ALGORITHM


def challenge_for(nonce: str, hash_algorithm: str) -> Challenge:
    """The challenge; it names the hash algorithm where that is not the protocol's usual one."""
    usual = hash_algorithm == HASH_ALGORITHM
    return Challenge(nonce=nonce, extra_params="" if usual else {"selected-hash-algorithm": hash_algorithm})


def check_challenge(challenge: Challenge) -> str:
    """Establish, in the client, that the broker asks for nothing we cannot do; returns its hash algorithm.

    Raises:
        MalformedInput: no nonce, or a hash algorithm is demanded that we did not offer.
    """
    if not challenge.nonce:
        raise MalformedInput("challenge: empty nonce")
    if isinstance(challenge.extra_params, dict):
        selected = str(challenge.extra_params.get("selected-hash-algorithm", HASH_ALGORITHM)).lower()
        if selected not in SUPPORTED_HASH_ALGORITHMS:
            raise MalformedInput(f"challenge: hash algorithm {selected[:20]!r} is not supported")
        return selected
    return HASH_ALGORITHM


def runtime_data(nonce: str, key: TeePublicKey, additional_evidence: str = "") -> dict[str, Any]:
    """The structure whose canonical JSON the evidence is bound to.

    ``additional-evidence`` has a hyphen here (an underscore on the wire) and is there even when empty; the
    key is rebuilt from exactly the members of the typed struct, or the two sides' digests would differ.
    """
    return {"additional-evidence": additional_evidence, "nonce": nonce, "tee-pubkey": dict(key.jwk)}


@dataclass(frozen=True, slots=True)
class ResourcePath:
    """``repository/type/tag``, and a version where one is asked for (None: the newest)."""

    repository: str
    type: str
    tag: str
    version: int | None = None

    @classmethod
    def parse(cls, path: str, version: int | None = None) -> ResourcePath:
        """Read ``repository/type/tag``.

        Raises:
            MalformedInput: not three segments of letters, digits, ``_``, and ``-.`` but not first.
        """
        segments = path.split("/")
        if len(segments) != 3 or not all(_SEGMENT.fullmatch(segment) for segment in segments):
            raise MalformedInput(f"resource path must be repository/type/tag, found {path[:80]!r}")
        repository, kind, tag = segments
        return cls(repository, kind, tag, version)

    @classmethod
    def from_uri(cls, uri: str) -> ResourcePath:
        """Read ``kbs:///repository/type/tag``, optionally with ``?version=n``; an authority is ignored."""
        found = _URI.fullmatch(uri)
        if found is None:
            raise MalformedInput(f"resource URI must be kbs:///repository/type/tag, found {uri[:80]!r}")
        version = found["version"]
        return cls.parse(found["path"], None if version is None else int(version))

    @property
    def path(self) -> str:
        """``repository/type/tag``."""
        return f"{self.repository}/{self.type}/{self.tag}"

    def __str__(self) -> str:
        return self.path if self.version is None else f"{self.path}?version={self.version}"


def _converted(value: Any, form: type[T], what: str) -> T:
    try:
        return msgspec.convert(value, form)
    except (msgspec.ValidationError, RecursionError) as error:
        raise MalformedInput(f"{what}: {error}") from error
