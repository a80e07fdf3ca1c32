"""Serve machine-learning models on machines that nobody has to trust."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloister.client.session import AsyncClient, Client, async_transport, transport

__version__ = "0.1.0"
_CLIENT = ("AsyncClient", "Client", "async_transport", "transport")
__all__ = ["AsyncClient", "Client", "__version__", "async_transport", "transport"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: the server and the broker import this package without wanting the client.
    if name in _CLIENT:
        from cloister.client import session

        return getattr(session, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
