"""``ts.handler_utils.utils`` and ``ts.protocol.otf_message_handler``: classes by name, answers in parts.

Source: pytorch/serve 0.12, ts/handler_utils/utils.py (names and behaviour).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from cloister.serve.torchserve.context import Context


def import_class(class_name: str, module_prefix: str | None = None) -> Any:
    """The class of this dotted name."""
    module_name, _, name = (class_name or "").rpartition(".")
    path = ".".join(part for part in (module_prefix, module_name) if part)
    if not name or not path:
        raise ImportError(f"{class_name!r} does not name a module and a class")
    found = getattr(importlib.import_module(path), name, None)
    if found is None:
        raise ImportError(f"class:{name} not found in module:{path}.")
    return found


def send_intermediate_predict_response(
    ret: Any, req_id_map: Mapping[int, str], message: str, code: int, context: Context
) -> None:
    """Send one more part of the answer of each request in ``req_id_map``; ``handle`` returns the last one.

    Raises:
        RuntimeError: outside of a request, or where answers are not sent in parts.
    """
    for index in req_id_map:
        context.send_part(index, ret[index])
