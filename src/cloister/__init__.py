"""Serve machine-learning models on machines that nobody has to trust."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cloister.client.session import Client

__version__ = "0.1.0"
__all__ = ["Client", "__version__"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: the server and the broker import this package without wanting the client.
    if name == "Client":
        from cloister.client.session import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
