"""Where a TEE gets its keys: a key cache on this machine, or brokers and caches behind HTTPS."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from cloister.attest.model import Attester
from cloister.crypto.locked import LockedSecret
from cloister.errors import ConfigError, TransportError
from cloister.kbs.cache.client import CacheClient
from cloister.kbs.client import BrokerClient

UNIX = "unix:"


class KeySource(Protocol):
    """Gives keys: ``BrokerClient``, ``CacheClient``, or several of them in turn."""

    def get_resource(self, uri: str) -> bytes:
        """The secret bytes of ``kbs:///repository/type/tag``, with ``?version=n`` of that version.

        Raises:
            KeyUnavailable: refused, with the reason.
            TransportError: nobody could be asked.
        """
        ...

    def close(self) -> None:
        """Forget sessions and connections."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class FirstReachable:
    """Asks the first source that can be reached. A refusal is an answer: nobody else is asked then."""

    def __init__(self, sources: Sequence[KeySource]) -> None:
        self._sources = sources

    def get_resource(self, uri: str) -> bytes:
        """See ``KeySource``."""
        failures = []
        for source in self._sources:
            try:
                return source.get_resource(uri)
            except TransportError as error:
                failures.append(error)
        if len(failures) == 1:
            raise failures[0]
        raise TransportError("; ".join(error.message for error in failures), hint=failures[-1].hint)

    def close(self) -> None:
        """Close all of them."""
        with contextlib.ExitStack() as stack:
            for source in self._sources:
                stack.callback(source.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def lock_from_first(brokers: Sequence[BrokerClient], uri: str, *, required: bool) -> LockedSecret:
    """As ``FirstReachable``, into locked memory."""
    failures = []
    for broker in brokers:
        try:
            return broker.get_locked(uri, required=required)
        except TransportError as error:
            failures.append(error)
    raise TransportError("; ".join(error.message for error in failures), hint=failures[-1].hint)


def open_key_source(
    url: str, *, attester: Callable[[], Attester], ca: Path | None = None, timeout_s: float = 30.0
) -> KeySource:
    """The source that ``url`` names.

    Args:
        url: ``unix:/path``, ``https://host:port``, or several with blanks between, asked in turn.
        attester: called only where evidence has to be shown: a local cache wants none.
        ca: PEM file that their TLS is checked against; None trusts the system's authorities.
    Raises:
        ConfigError: none of these forms, no certificate in ``ca``, or no TEE to attest with.
    """
    addresses = url.split()
    if not addresses:
        raise ConfigError("no key broker and no key cache is configured")
    opened: list[KeySource] = []
    for address in addresses:
        if address.startswith(UNIX):
            path = Path(address.removeprefix(UNIX).removeprefix("//"))
            if not path.is_absolute():
                raise ConfigError(f"a key cache is named unix:/absolute/path, found {address[:80]!r}")
            opened.append(CacheClient(path))
        else:
            opened.append(BrokerClient(address, attester=attester(), ca=ca, timeout_s=timeout_s))
    return opened[0] if len(opened) == 1 else FirstReachable(opened)
