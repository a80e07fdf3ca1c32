"""The server's log: one JSON object for each event on stderr; never a body, header, query or error text."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

import structlog

log: Any = structlog.get_logger("cloister.serve")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure_log(level: str) -> None:
    """Send events of at least ``level`` to stderr, and silence the libraries' own loggers.

    uvicorn logs tracebacks and request lines, either of which can hold what a caller sent.
    """
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "httpx", "httpcore"):
        logger = logging.getLogger(name)
        logger.handlers = [logging.NullHandler()]
        logger.propagate = False


def log_fault(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """For an event loop, whose own report prints tracebacks, which can hold what a caller sent."""
    log.error("event loop fault", exception=type(context.get("exception")).__name__)
