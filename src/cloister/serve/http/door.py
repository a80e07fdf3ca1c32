"""May this request go on? TorchServe's tokens first, where a port asks for them; then the access policy.

Decisions are remembered for up to a second, unless requests have to be counted: verifying a JSON Web Token
costs more than a small prediction.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from cloister.errors import ModelNotFound
from cloister.serve.frames import Headers
from cloister.serve.http.access import TokenAccess
from cloister.serve.http.actions import Asked
from cloister.serve.registry import Registry
from cloister.serve.torchserve.key_file import TokenKind

if TYPE_CHECKING:
    from cloister.policy.requests import Caller
    from cloister.serve.access.control import AccessControl

REMEMBERED_S = 1.0
MAX_REMEMBERED = 4096
CREDENTIALS = frozenset((b"authorization", b"x-api-key"))
"""Headers that a decision depends on."""


class Door:
    """Lets requests in or raises the refusal."""

    def __init__(
        self, tokens: TokenAccess, registry: Registry, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._tokens = tokens
        self._registry = registry
        self._clock = clock
        self._control: AccessControl | None = None
        self._known: dict[tuple[object, ...], float] = {}
        self._known_since = 0.0
        self._known_generation = -1
        self._uses = 0

    def use(self, control: AccessControl | None) -> None:
        """Ask ``control`` too; None lets in everybody who has the token that a port asks for."""
        self._control = control
        self._uses += 1

    @property
    def control(self) -> AccessControl | None:
        """Who decides besides the tokens."""
        return self._control

    @property
    def generation(self) -> int:
        """Changes whenever a decision could come out differently, but for the end of a credential."""
        control = self._control
        return self._tokens.generation + self._uses + (control.generation if control is not None else 0)

    @property
    def counts(self) -> bool:
        """Whether each request has to be asked about anew."""
        return self._control is not None and self._control.counts

    def require(
        self,
        kind: TokenKind | None,
        way: str,
        asked: Asked | None,
        headers: Headers,
        certificate: bytes = b"",
        *,
        note_refusal: bool = True,
    ) -> None:
        """Let a request pass.

        Args:
            kind: TorchServe's token that the port asks for.
            way: ``sealed``, ``tls`` or ``open``.
            asked: None for what needs no permission.
            certificate: DER of the client certificate that TLS has verified.
            note_refusal: whether a refusal goes into the log of decisions.
        Raises:
            InvalidKey: without the token that the port asks for.
            Unauthenticated, IssuerAway, Forbidden, TooManyRequests: as ``AccessControl.admit``.
        """
        if self._control is None:
            if kind is not None:
                self._tokens.require(kind, headers)
            return
        key = (kind, way, asked, certificate, *(pair for pair in headers if pair[0] in CREDENTIALS))
        now = self._clock()
        if now < self._remembered().get(key, 0.0):
            return
        until_s = self._decide(
            self._control, kind, way, asked, headers, certificate, note_refusal=note_refusal
        )
        if not self._control.counts:
            self._known[key] = min(until_s, now + REMEMBERED_S)

    def _decide(
        self,
        control: AccessControl,
        kind: TokenKind | None,
        way: str,
        asked: Asked | None,
        headers: Headers,
        certificate: bytes,
        *,
        note_refusal: bool,
    ) -> float:
        """Until when it holds."""
        caller = self._token_caller(control, kind, headers, certificate)
        if asked is None:
            return float("inf")
        version, known = asked.version, not asked.model
        with suppress(ModelNotFound):  # whether there is such a model is for those who may ask for it
            version, known = self._registry.find(asked.model, asked.version or None).version, True
        admission = control.admit(
            asked.action,
            asked.model,
            version,
            way,
            headers,
            certificate=certificate,
            caller=caller,
            known=known,
            note_refusal=note_refusal,
        )
        return admission.until_s

    def _token_caller(
        self, control: AccessControl, kind: TokenKind | None, headers: Headers, certificate: bytes
    ) -> Caller | None:
        """Whoever has one of TorchServe's tokens; None for another credential, which the policy judges.

        Where a port asks for a kind of token, another kind lets nobody in.
        """
        from cloister.policy.requests import ANONYMOUS, Caller
        from cloister.serve.access.control import Unauthenticated

        wanted = kind if kind is not None and self._tokens.asks_for(kind) else None
        held = self._tokens.held(headers)
        if held is not None and wanted in (None, held):
            return Caller(kind="token", subject=held.value)
        if wanted is None:
            return None
        try:
            found, _ = control.identify(headers, certificate)
        except Unauthenticated:
            found = ANONYMOUS
        if held is not None or found == ANONYMOUS:
            self._tokens.require(wanted, headers)
        return None

    def _remembered(self) -> dict[tuple[object, ...], float]:
        now, generation = self._clock(), self.generation + self._registry.generation
        stale = generation != self._known_generation or not 0 <= now - self._known_since < REMEMBERED_S
        if stale or len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
            self._known_since, self._known_generation = now, generation
        return self._known
