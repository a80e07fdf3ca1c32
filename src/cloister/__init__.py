"""Serve machine-learning models on machines that nobody has to trust."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloister.client.session import (
        AsyncClient,
        Client,
        async_httpx2_transport,
        async_transport,
        httpx2_transport,
        transport,
    )

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "Client",
    "__version__",
    "async_httpx2_transport",
    "async_transport",
    "httpx2_transport",
    "transport",
]


def __getattr__(name: str) -> Any:
    # Loaded on first use: the server and the broker import this package without wanting the client.
    if name in __all__:
        from cloister.client import session

        return getattr(session, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
