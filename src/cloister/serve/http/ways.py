"""How requests come in."""

from __future__ import annotations

import enum


class Way(enum.Enum):
    """How a request came in."""

    OPEN = "open"
    """The one port of a server in open mode: inference, models, metrics."""
    INFERENCE = "inference"
    """TorchServe's inference port."""
    MANAGEMENT = "management"
    """The management port; in protected mode under the attested key."""
    METRICS = "metrics"
    """The metrics port."""
    ALL = "all"
    """One port for inference and management, which TorchServe makes of two equal addresses."""
    TLS = "tls"
    """The attested key's port."""
    PLAIN = "plain"
    """The plain port of a protected server: only what needs no secrecy, or brings its own."""
    SEALED = "sealed"
    """Inside OHTTP."""
