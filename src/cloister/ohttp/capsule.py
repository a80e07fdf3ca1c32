"""Oblivious HTTP (RFC 9458): key configurations, encapsulated requests and responses. No I/O.

Key configuration (section 3.1); ``application/ohttp-keys`` holds several, each after its u16 length:

====== ============ =========================================================
offset size         field
====== ============ =========================================================
0      1            key id
1      2            HPKE KEM
3      Npk          public key
3+Npk  2            bytes of the list that follows, a multiple of 4, not zero
5+Npk  4 each       HPKE KDF (u16), HPKE AEAD (u16)
====== ============ =========================================================

Encapsulated request (section 4.3), whose first 7 bytes go into HPKE's ``info``:

====== ============ =========================================================
offset size         field
====== ============ =========================================================
0      1            key id
1      6            KEM, KDF, AEAD (u16 each)
7      Nenc         ``enc``, the sender's ephemeral public key
7+Nenc rest         ciphertext of a Binary HTTP request, 16 bytes of tag last
====== ============ =========================================================

Encapsulated response (section 4.4): a random nonce of max(Nn, Nk) bytes, then the ciphertext.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from cloister.crypto.hpke import Kem, PrivateKey, PublicKey, Suite, find_kem, find_suite
from cloister.errors import BadCiphertext, MalformedInput

REQUEST_TYPE = "message/ohttp-req"
RESPONSE_TYPE = "message/ohttp-res"
KEYS_TYPE = "application/ohttp-keys"
KEY_PROBLEM = "https://iana.org/assignments/http-problem-types#ohttp-key"
"""Problem type (RFC 9458, section 5.3) of an answer to a request under a key that the gateway cannot use."""

HEADER_BYTES = 7
TAG_BYTES = 16
MAX_KEYS_BYTES = 65_536

_HEADER = struct.Struct(">BHHH")
_REQUEST_LABEL = b"message/bhttp request"
_RESPONSE_LABEL = b"message/bhttp response"


@dataclass(frozen=True, slots=True)
class KeyConfig:
    """One key that a gateway offers, and the symmetric algorithms to use it with, preferred first."""

    key_id: int
    public: PublicKey
    algorithms: tuple[tuple[int, int], ...]
    """Pairs of KDF and AEAD identifier; ones that this package does not know are kept."""

    @classmethod
    def parse(cls, raw: bytes) -> KeyConfig:
        """Read exactly one configuration.

        Raises:
            MalformedInput: wrong length, unknown KEM, bad public key, or a list of a wrong size.
        """
        if len(raw) < 3:
            raise MalformedInput(f"key configuration: truncated at {len(raw)} bytes")
        kem = find_kem(int.from_bytes(raw[1:3], "big"))
        start = 3 + kem.public_bytes
        size = int.from_bytes(raw[start : start + 2], "big")
        listed = raw[start + 2 :]
        if len(raw) < start + 2 or size != len(listed):
            raise MalformedInput(f"key configuration: expected {start + 2 + size} bytes, found {len(raw)}")
        if size == 0 or size % 4:
            raise MalformedInput(f"key configuration: {size} bytes of symmetric algorithms")
        algorithms = tuple(struct.iter_unpack(">HH", listed))
        return cls(raw[0], PublicKey(kem, raw[3:start]), algorithms)

    def render(self) -> bytes:
        """The configuration's bytes."""
        listed = b"".join(struct.pack(">HH", *pair) for pair in self.algorithms)
        return struct.pack(">BH", self.key_id, self.public.kem) + self.public.raw + _framed(listed)

    def pick_suite(self) -> Suite:
        """The first of the offered combinations that is supported.

        Raises:
            MalformedInput: none is.
        """
        for kdf, aead in self.algorithms:
            try:
                return find_suite(self.public.kem, kdf, aead)
            except MalformedInput:
                continue
        raise MalformedInput("key configuration: no supported combination of KDF and AEAD")


def render_key_configs(configs: Iterable[KeyConfig]) -> bytes:
    """An ``application/ohttp-keys`` document."""
    return b"".join(_framed(config.render()) for config in configs)


def parse_key_configs(raw: bytes) -> tuple[KeyConfig, ...]:
    """Read an ``application/ohttp-keys`` document; configurations of unknown KEMs are skipped (section 3.2).

    Raises:
        MalformedInput: truncated, a malformed configuration, or none with a known KEM.
    """
    if len(raw) > MAX_KEYS_BYTES:
        raise MalformedInput(f"key configurations: at most {MAX_KEYS_BYTES} bytes, found {len(raw)}")
    configs: list[KeyConfig] = []
    position = 0
    while position < len(raw):
        size = int.from_bytes(raw[position : position + 2], "big")
        one = raw[position + 2 : position + 2 + size]
        if len(one) != size or size < 3:
            raise MalformedInput("key configurations: truncated")
        position += 2 + size
        if int.from_bytes(one[1:3], "big") in tuple(Kem):
            configs.append(KeyConfig.parse(one))
    if not configs:
        raise MalformedInput("key configurations: none with a supported KEM")
    return tuple(configs)


class CapsuleHeader(NamedTuple):
    """The clear part of an encapsulated request; HPKE authenticates it as ``info``."""

    key_id: int
    kem_id: int
    kdf_id: int
    aead_id: int

    @classmethod
    def parse(cls, capsule: bytes) -> CapsuleHeader:
        """Read the first 7 bytes.

        Raises:
            MalformedInput: there are not so many.
        """
        try:
            return cls._make(_HEADER.unpack_from(capsule))
        except struct.error as error:
            raise MalformedInput(f"encapsulated request: truncated at {len(capsule)} bytes") from error


class ResponseOpener:
    """Opens the answer to one sealed request."""

    __slots__ = ("_enc", "_secret", "_suite")

    def __init__(self, suite: Suite, enc: bytes, secret: bytes) -> None:
        self._suite = suite
        self._enc = enc
        self._secret = secret

    def open(self, capsule: bytes) -> bytes:
        """The Binary HTTP response inside.

        Raises:
            BadCiphertext: truncated, changed, or an answer to another request.
        """
        size = max(self._suite.nonce_bytes, self._suite.key_bytes)
        if len(capsule) < size + TAG_BYTES:
            raise BadCiphertext(f"encapsulated response: truncated at {len(capsule)} bytes")
        key, nonce = _response_keys(self._suite, self._enc, self._secret, capsule[:size])
        try:
            return self._suite.aead_key(key).open(nonce, memoryview(capsule)[size:])
        except BadCiphertext as error:
            raise BadCiphertext("encapsulated response: does not authenticate") from error


class ResponseSealer:
    """Seals the answer to one request, for the one who sealed that request."""

    __slots__ = ("_enc", "_secret", "_suite")

    def __init__(self, suite: Suite, enc: bytes, secret: bytes) -> None:
        self._suite = suite
        self._enc = enc
        self._secret = secret

    def seal(self, response: bytes, *, response_nonce: bytes | None = None) -> bytes:
        """The encapsulated response.

        Args:
            response_nonce: only to reproduce published vectors; by default random.
        """
        if response_nonce is None:
            response_nonce = os.urandom(_secret_bytes(self._suite))
        key, nonce = _response_keys(self._suite, self._enc, self._secret, response_nonce)
        return response_nonce + self._suite.aead_key(key).seal(nonce, response)


def seal_request(
    config: KeyConfig, request: bytes, *, ephemeral: PrivateKey | None = None
) -> tuple[bytes, ResponseOpener]:
    """Encrypt a Binary HTTP request to a gateway's key (section 4.3).

    Args:
        config: who will be able to read it; whether to trust that key is decided before.
        ephemeral: only to reproduce published vectors.
    Returns:
        The encapsulated request, and what opens its answer.
    """
    suite = config.pick_suite()
    header = pack_header(config.key_id, suite)
    context = suite.setup_sender(config.public, _info(header), ephemeral=ephemeral)
    secret = context.export(_RESPONSE_LABEL, _secret_bytes(suite))
    capsule = b"".join((header, context.enc, context.seal(request)))
    return capsule, ResponseOpener(suite, context.enc, secret)


def pack_header(key_id: int, suite: Suite) -> bytes:
    """The clear first 7 bytes of a request."""
    return _HEADER.pack(key_id, suite.kem, suite.kdf, suite.aead)


def open_request(key: PrivateKey, capsule: bytes) -> tuple[bytes, ResponseSealer]:
    """Decrypt an encapsulated request.

    Whether ``key`` is the one that the header's key id names, and whether the request is a replay, is for
    the caller to see to; ``cloister.ohttp.gateway`` does.

    Raises:
        MalformedInput: truncated, an unsupported suite, or an unusable ``enc``.
        BadCiphertext: it does not authenticate.
    """
    header = CapsuleHeader.parse(capsule)
    suite = find_suite(header.kem_id, header.kdf_id, header.aead_id)
    return open_with(key, suite, request_enc(capsule, suite), capsule)


def open_with(key: PrivateKey, suite: Suite, enc: bytes, capsule: bytes) -> tuple[bytes, ResponseSealer]:
    """As ``open_request``, for whoever has read the header."""
    context = suite.setup_recipient(enc, key, _info(capsule[:HEADER_BYTES]))
    request = context.open(memoryview(capsule)[HEADER_BYTES + len(enc) :])
    secret = context.export(_RESPONSE_LABEL, _secret_bytes(suite))
    return request, ResponseSealer(suite, enc, secret)


def request_enc(capsule: bytes, suite: Suite) -> bytes:
    """The ``enc`` of an encapsulated request: fresh for each, so that it also names the request.

    Raises:
        MalformedInput: truncated.
    """
    end = HEADER_BYTES + suite.enc_bytes
    if len(capsule) < end + TAG_BYTES:
        raise MalformedInput(f"encapsulated request: truncated at {len(capsule)} bytes")
    return capsule[HEADER_BYTES:end]


def _info(header: bytes) -> bytes:
    return _REQUEST_LABEL + b"\x00" + header


def _response_keys(suite: Suite, enc: bytes, secret: bytes, response_nonce: bytes) -> tuple[bytes, bytes]:
    prk = suite.extract(enc + response_nonce, secret)
    return suite.expand_two(prk, b"key", suite.key_bytes, b"nonce", suite.nonce_bytes)


def _secret_bytes(suite: Suite) -> int:
    return max(suite.nonce_bytes, suite.key_bytes)


def _framed(part: bytes) -> bytes:
    return struct.pack(">H", len(part)) + part
