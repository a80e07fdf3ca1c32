"""The broker's log: one JSON object per line on standard error, for machines and people. Never a secret."""

from __future__ import annotations

import logging
import sys
from typing import cast

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger


def _render(event: object, **_options: object) -> str:
    return msgspec.json.encode(event, enc_hook=repr, order="sorted").decode("utf-8")


def json_logger(level: str) -> FilteringBoundLogger:
    """A logger that writes events of ``level`` and above."""
    return cast(
        FilteringBoundLogger,
        structlog.wrap_logger(
            structlog.PrintLogger(sys.stderr),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(serializer=_render),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(
                logging.getLevelNamesMapping()[level.upper()]
            ),
        ),
    )
