"""Who may ask: TorchServe's tokens in front of an API's routes."""

from __future__ import annotations

from collections.abc import Collection

from cloister.serve.frames import Headers
from cloister.serve.refusals import InvalidKey
from cloister.serve.torchserve.key_file import KeyFile, TokenKind

_LETS_IN = (TokenKind.MANAGEMENT, TokenKind.INFERENCE)
_FAILED = "Token either incorrect, expired, or not provided correctly"


class TokenAccess:
    """Checks tokens; without a key file everybody may come in.

    Args:
        open_to: kinds that need no token all the same.
    """

    def __init__(self, keys: KeyFile | None, open_to: Collection[TokenKind] = ()) -> None:
        self._keys = keys
        self._open_to = frozenset(open_to)
        self.generation = 0
        """Changes whenever a decision could come out differently, but for a token's expiry."""

    @property
    def is_on(self) -> bool:
        return self._keys is not None

    def asks_for(self, kind: TokenKind) -> bool:
        """Whether this kind is needed anywhere."""
        return self._keys is not None and kind not in self._open_to

    def require(self, kind: TokenKind, headers: Headers) -> None:
        """Let a request with the right token pass.

        Raises:
            InvalidKey: it has none, or not the right one.
        """
        if self._keys is None or kind in self._open_to:
            return
        if not self._keys.admits(kind, _authorization(headers)):
            raise InvalidKey(f"Token Authorization failed. {_FAILED}")

    def held(self, headers: Headers) -> TokenKind | None:
        """Which of the tokens for an API a request brings, still valid; None if it is none of them."""
        if self._keys is None:
            return None
        shown = _authorization(headers)
        held = [
            kind for kind in _LETS_IN if self._keys.admits(kind, shown)
        ]  # each is compared, in constant time
        return held[0] if held else None

    def renew(self, wanted: str, headers: Headers) -> None:
        """``GET /token?type=``: replace the management or the inference token.

        Raises:
            InvalidKey: not the API's token, or no such type.
        """
        assert self._keys is not None
        allowed = self._keys.admits(TokenKind.API, _authorization(headers))
        if not allowed or wanted not in (TokenKind.MANAGEMENT.value, TokenKind.INFERENCE.value):
            raise InvalidKey(f"Token Authentication failed. {_FAILED}")
        self._keys.rotate(TokenKind(wanted))
        self.generation += 1


def _authorization(headers: Headers) -> bytes:
    values = [value for name, value in headers if name == b"authorization"]
    return values[0] if len(values) == 1 else b""
