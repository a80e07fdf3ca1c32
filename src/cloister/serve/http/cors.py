"""Cross-origin requests: which web pages may read the answers of a port (Fetch standard, "CORS protocol").

Cookies and the browser's other credentials are never allowed: no answer says so, whatever the origin. What a
page needs to let it in it sends itself, and to a protected server it sends that sealed.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from cloister.serve.frames import Headers
from cloister.settings import ServeSettings

PREFLIGHT_METHODS = "GET, POST, PUT, DELETE"
PREFLIGHT_HEADERS = "content-type, authorization, x-api-key"
PREFLIGHT_S = 600
"""How long a browser may remember a preflight's answer."""
_ANY = b"*"


class Cors:
    """What one server says to pages of other origins.

    One origin, or ``*``, is said with every answer, as TorchServe does; of several, the one that asks.
    """

    def __init__(self, settings: ServeSettings) -> None:
        origins = settings.cors_origin.replace(",", " ").split()
        self._origins = frozenset(item.encode("latin-1") for item in origins)
        self._single = next(iter(self._origins)) if len(self._origins) == 1 else b""
        if _ANY in self._origins:
            self._single = _ANY
        self._methods = settings.cors_methods.encode("latin-1")
        self._headers = settings.cors_headers.encode("latin-1")

    @property
    def is_on(self) -> bool:
        """Whether pages of any other origin may read anything."""
        return bool(self._origins or self._methods or self._headers)

    def headers(self, origin: bytes) -> Headers:
        """What goes with every answer to a page of this origin; empty for no page."""
        pairs = [] if self._single else [(b"vary", b"origin")]
        allowed = self._single or (origin if origin in self._origins else b"")
        pairs += [
            (b"access-control-allow-origin", allowed),
            (b"access-control-allow-methods", self._methods),
            (b"access-control-allow-headers", self._headers),
        ]
        return [pair for pair in pairs if pair[1]]

    def preflight(self, scope: MutableMapping[str, Any]) -> Headers | None:
        """The headers of the answer to a browser that asks before it sends; None if this is something else.

        A page that may not ask gets an answer without a permission, and its browser sends nothing more.
        """
        if scope["method"] != "OPTIONS" or not self.is_on:
            return None
        asked = dict(scope["headers"])
        if b"origin" not in asked or b"access-control-request-method" not in asked:
            return None
        said = dict(self.headers(asked[b"origin"]))
        if b"access-control-allow-origin" in said:
            said.setdefault(b"access-control-allow-methods", PREFLIGHT_METHODS.encode())
            said.setdefault(b"access-control-allow-headers", PREFLIGHT_HEADERS.encode())
            said[b"access-control-max-age"] = b"%d" % PREFLIGHT_S
        return list(said.items())


def find_origin(headers: Headers) -> bytes:
    """The origin of the page that asks; empty if it is no page."""
    return next((value for name, value in headers if name == b"origin"), b"")
