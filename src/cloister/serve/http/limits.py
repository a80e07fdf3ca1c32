"""What is refused before a body is read: by its path and its length alone."""

from __future__ import annotations

from cloister.serve.http import paths
from cloister.serve.http.errors import plain_http_refused
from cloister.serve.http.messages import Response
from cloister.serve.http.ways import Way

SEALED_OVERHEAD_BYTES = 1 << 17
"""How much longer than its content a sealed request may be: headers, framing, encapsulation."""
_PUBLIC = frozenset((paths.PING, paths.EVIDENCE, paths.GATEWAY))


def body_limit(path: str, max_request_bytes: int) -> int:
    """How long a body may be at this path."""
    return max_request_bytes + SEALED_OVERHEAD_BYTES if path == paths.GATEWAY else max_request_bytes


def refuse_early(way: Way, path: str) -> Response | None:
    """What to answer before any of the body is read; None if the request may go on."""
    return plain_http_refused() if way is Way.PLAIN and path not in _PUBLIC else None
