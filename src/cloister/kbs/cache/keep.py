"""The keys that a cache holds: leased from the broker, renewed, dropped. No network and no clock of its own.

A key is good for ``lease_s`` after the broker released it, and for ``grace_s`` more while the broker cannot
be reached. It is asked for again when half of its lease is over:

=================================== =================================================================
the broker then                     the key
=================================== =================================================================
releases it                         is replaced, with a new lease
refuses it (revoked, deleted, ...)  is dropped and overwritten at once
cannot be reached, or fails         stays until lease and grace are over, then is dropped
=================================== =================================================================

So whoever cuts the cache off from the broker gains at most lease and grace: that is what they cost.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from cloister.crypto.locked import LockedSecret
from cloister.errors import CloisterError, ConfigError, KeyUnavailable, TransportError
from cloister.kbs.protocol import ResourcePath

MAX_KEYS = 4096
"""Versions are held as they are asked for: this bounds what a sibling can make the cache hold."""

Fetch = Callable[[str], LockedSecret]
"""Asks the broker for one URI. KeyUnavailable means that it refuses, any other error that it cannot now."""


@dataclass(slots=True)
class _Leased:
    secret: LockedSecret
    released_at: float


@dataclass(frozen=True, slots=True)
class Renewal:
    """What one round of renewals did."""

    renewed: tuple[str, ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()
    """URIs with the broker's reason."""
    failed: str = ""
    """Why the broker could not be asked for all of them; empty if it could."""


class KeyKeep:
    """Leased keys by URI. Safe to use from many threads; ``fetch`` is called by one at a time.

    Args:
        uris: the keys that may be held. One without a version allows every version of it.
        fetch: asks the broker.
        clock: seconds, also counting while the machine sleeps.
        retry_s: how long after a failure of the broker nobody waits for it again; at most a tenth of a lease.
        patience_s: how long a caller waits for another caller's request to the broker.
    Raises:
        MalformedInput: not a resource URI.
    """

    def __init__(
        self,
        uris: Iterable[str],
        fetch: Fetch,
        clock: Callable[[], float],
        *,
        lease_s: float,
        grace_s: float,
        retry_s: float = 1.0,
        patience_s: float = 4.0,
    ) -> None:
        if lease_s <= 0 or grace_s < 0:
            raise ConfigError("cache.lease_s must be positive, and cache.grace_s not negative")
        self._allowed = dict.fromkeys(ResourcePath.from_uri(uri) for uri in uris)
        self._fetch = fetch
        self._clock = clock
        self._lease_s = lease_s
        self._grace_s = grace_s
        self._retry_s = min(retry_s, lease_s / 10)
        self._patience_s = patience_s
        self._held: dict[ResourcePath, _Leased] = {}
        self._guard = threading.Lock()
        self._asking = threading.Lock()
        self._outage: tuple[float, str] | None = None

    @contextlib.contextmanager
    def lend(self, path: ResourcePath) -> Iterator[memoryview]:
        """The bytes of a key, which is asked for at the broker if it is allowed and not held.

        Raises:
            KeyUnavailable: not one of this cache's keys, or the broker refuses it.
            TransportError: not held, and the broker cannot be reached.
        """
        if path not in self._allowed and _newest(path) not in self._allowed:
            raise KeyUnavailable(f"kbs:///{path} is not among the keys of this cache")
        with contextlib.ExitStack() as stack:
            try:
                view = stack.enter_context(self._get(path).lend())
            except LookupError:  # just renewed
                view = stack.enter_context(self._get(path).lend())
            yield view

    def renew(self) -> Renewal:
        """Ask the broker for every key that half of its lease is over for, or that is not held yet."""
        renewed: list[str] = []
        dropped: list[tuple[str, str]] = []
        failed = ""
        with self._asking:
            for path in self._due():
                try:
                    self._lease(path)
                    renewed.append(f"kbs:///{path}")
                except KeyUnavailable as error:
                    if self._drop(path):
                        dropped.append((f"kbs:///{path}", error.message))
                except TransportError as error:
                    failed = error.message
                    break  # the others would only wait for the same broker
                except CloisterError as error:
                    failed = error.message
        self._drop_ended()
        return Renewal(tuple(renewed), tuple(dropped), failed)

    def wait_s(self) -> float:
        """Seconds until ``renew`` has something to do."""
        now = self._clock()
        with self._guard:
            oldest = max((now - held.released_at for held in self._held.values()), default=0.0)
            missing = any(path not in self._held for path in self._allowed)
        rest = self._lease_s / 2 - oldest
        if missing:
            rest = min(rest, self._lease_s / 20)
        return max(rest, self._retry_s)

    def clear(self) -> None:
        """Drop every key."""
        with self._guard:
            paths = list(self._held)
        for path in paths:
            self._drop(path)

    def __len__(self) -> int:
        return len(self._held)

    def _get(self, path: ResourcePath) -> LockedSecret:
        held = self._good(path)
        return held if held is not None else self._obtain(path)

    def _good(self, path: ResourcePath) -> LockedSecret | None:
        now = self._clock()
        with self._guard:
            held = self._held.get(path)
            if held is not None and now < held.released_at + self._lease_s + self._grace_s:
                return held.secret
        return None

    def _obtain(self, path: ResourcePath) -> LockedSecret:
        self._check_outage(path)
        if not self._asking.acquire(timeout=self._patience_s):
            raise TransportError(
                f"the key cache does not hold kbs:///{path}, and the broker has not answered yet"
            )
        try:
            held = self._good(path)  # another caller may just have brought it
            if held is not None:
                return held
            self._check_outage(path)
            if len(self._held) >= MAX_KEYS:
                raise KeyUnavailable(f"the key cache already holds {MAX_KEYS} keys")
            try:
                return self._lease(path)
            except KeyUnavailable:
                self._drop(path)
                raise
            except TransportError as error:
                raise self._cold(path, error.message) from error
        finally:
            self._asking.release()

    def _check_outage(self, path: ResourcePath) -> None:
        outage = self._outage
        if outage is not None and self._clock() < outage[0] + self._retry_s:
            raise self._cold(path, outage[1])

    def _cold(self, path: ResourcePath, reason: str) -> TransportError:
        return TransportError(f"the key cache does not hold kbs:///{path}, and {reason}")

    def _lease(self, path: ResourcePath) -> LockedSecret:
        """Ask the broker; the caller holds ``_asking``."""
        begun = self._clock()
        try:
            secret = self._fetch(f"kbs:///{path}")
        except KeyUnavailable:
            self._outage = None
            raise
        except TransportError as error:
            self._outage = (self._clock(), error.message)
            raise
        self._outage = None
        with self._guard:
            older = self._held.get(path)
            self._held[path] = _Leased(secret, begun)
        if older is not None:
            older.secret.drop()
        return secret

    def _due(self) -> list[ResourcePath]:
        now = self._clock()
        with self._guard:
            known = dict.fromkeys([*self._allowed, *self._held])
            return [
                path
                for path in known
                if path not in self._held or now >= self._held[path].released_at + self._lease_s / 2
            ]

    def _drop(self, path: ResourcePath) -> bool:
        with self._guard:
            held = self._held.pop(path, None)
        if held is not None:
            held.secret.drop()
        return held is not None

    def _drop_ended(self) -> None:
        now = self._clock()
        with self._guard:
            ended = [
                path
                for path, held in self._held.items()
                if now >= held.released_at + self._lease_s + self._grace_s
            ]
        for path in ended:
            self._drop(path)


def _newest(path: ResourcePath) -> ResourcePath:
    return ResourcePath(path.repository, path.type, path.tag)
