"""``key_file.json``: TorchServe's three tokens, on by default in ``cloister torchserve``.

| Key | Lets in to | Expires |
|---|---|---|
| ``management`` | the management API | after ``token_expiration_min`` |
| ``inference`` | the inference API | after ``token_expiration_min`` |
| ``API`` | ``GET /token?type=``, which replaces one of the other two | never |

The file is the owner's only (0600), is replaced as a whole, and goes when the server stops. Tokens have 192
bits, where TorchServe's have 48, and are compared in constant time.

Source: pytorch/serve 0.12, docs/token_authorization_api.md.
"""

from __future__ import annotations

import contextlib
import enum
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cloister.errors import ConfigError

NAME = "key_file.json"
TOKEN_BYTES = 24
_BEARER = re.compile(rb"Bearer\s+(\S+)")


class TokenKind(enum.Enum):
    """What a token lets in to. The value is its name in the file."""

    MANAGEMENT = "management"
    INFERENCE = "inference"
    API = "API"


class KeyFile:
    """The tokens of one server, and the file that tells its owner."""

    def __init__(
        self,
        path: Path,
        *,
        expiration_min: float,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Make new tokens and write them.

        Raises:
            ConfigError: the file cannot be written, or the time is not a positive number of minutes.
        """
        if not 0 < expiration_min <= 60 * 24 * 3650:
            raise ConfigError(f"token_expiration_min is {expiration_min:g}, expected minutes above 0")
        self.path = path
        self._life_s = expiration_min * 60
        self._clock = clock
        self._now = now
        self._tokens: dict[TokenKind, bytes] = {}
        self._until: dict[TokenKind, float] = {}
        self._shown: dict[TokenKind, str] = {}
        for kind in TokenKind:
            self._renew(kind)
        self._write()

    def admits(self, kind: TokenKind, authorization: bytes) -> bool:
        """Whether a header ``Authorization: Bearer <token>`` carries the token of this kind, still valid."""
        match = _BEARER.fullmatch(authorization)
        right = hmac.compare_digest(match[1] if match else b"", self._tokens[kind])
        return right and self._clock() < self.valid_until(kind)

    def valid_until(self, kind: TokenKind) -> float:
        """When the token of this kind ends, on the monotonic clock."""
        return self._until.get(kind, float("inf"))

    def rotate(self, kind: TokenKind) -> None:
        """Replace one token, with a new time of expiry, here and in the file."""
        self._renew(kind)
        self._write()

    def remove(self) -> None:
        """Delete the file: its tokens are worth nothing without this server."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _renew(self, kind: TokenKind) -> None:
        self._tokens[kind] = secrets.token_urlsafe(TOKEN_BYTES).encode()
        if kind is not TokenKind.API:
            self._until[kind] = self._clock() + self._life_s
            moment = self._now() + timedelta(seconds=self._life_s)
            self._shown[kind] = moment.astimezone(UTC).isoformat().replace("+00:00", "Z")

    def _write(self) -> None:
        document = {}
        for kind, token in self._tokens.items():
            document[kind.value] = {"key": token.decode()}
            if kind in self._shown:
                document[kind.value]["expiration time"] = self._shown[kind]
        # A new file that takes the old one's name: readers see one or the other, and no link is followed.
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            part.unlink(missing_ok=True)
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(json.dumps(document, indent=2))
            part.replace(self.path)
        except OSError as error:
            raise ConfigError(f"cannot write {self.path}: {error.strerror}") from error
