"""A worker's answer to one exchange as the bytes that go out: whole, in chunks, or sealed."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cloister.errors import ModelFailed
from cloister.serve.frames import Headers
from cloister.serve.http.exchange import Exchange
from cloister.serve.http.front import Front
from cloister.serve.http.gateway import SEALED_HEADERS, Sealer, seal_response
from cloister.serve.http.oip import in_protocols_form
from cloister.serve.http.predictions import check_answer, render_answer
from cloister.serve.http.render import BODILESS, LAST_CHUNK, NO_STORE, chunk
from cloister.serve.jobs import Answer
from cloister.serve.oip.marks import is_marked


def render_whole(front: Front, exchange: Exchange, answer: Answer, *, close: bool) -> bytes:
    """One whole response. What a worker may not say becomes an error."""
    renderer = front.renderer
    status, headers, body = answer.status, answer.headers, answer.body
    prefix = None if answer.fault is not None else renderer.known(status, headers)
    if exchange.own:
        prefix = b"" if exchange.sealer is not None else renderer.learn(status, headers)
    elif prefix is None:
        answer = check_whole(exchange, answer)
        status, headers, body = answer.status, answer.headers, answer.body
        prefix = renderer.learn(status, headers)
    if front.access_log is not None:
        front.access_log.note(exchange.request_id, exchange.model, status, len(body), exchange.started)
    if exchange.sealer is not None:
        body = _seal(exchange.sealer, exchange, status, headers, body)
        status, prefix = 200, renderer.learn(200, SEALED_HEADERS)
    return renderer.whole(status, prefix, body, exchange.request_id, close=close)


def settle_whole(front: Front, exchange: Exchange, answer: Answer) -> Answer:
    """What ``render_whole`` would write, for another process to render."""
    renderer = front.renderer
    if not exchange.own and (
        answer.fault is not None or renderer.known(answer.status, answer.headers) is None
    ):
        answer = check_whole(exchange, answer)
        renderer.learn(answer.status, answer.headers)
    status, body = answer.status, answer.body
    if front.access_log is not None:
        front.access_log.note(exchange.request_id, exchange.model, status, len(body), exchange.started)
    if exchange.sealer is None:
        return answer
    return Answer(200, SEALED_HEADERS, _seal(exchange.sealer, exchange, status, answer.headers, body))


def check_whole(exchange: Exchange, answer: Answer) -> Answer:
    """A worker's whole answer, or the error that its caller gets instead."""
    checked = render_answer(answer)
    if checked.status >= 400 and is_marked(exchange.headers):
        checked = in_protocols_form(checked)
    assert isinstance(checked.content, bytes)
    return Answer(checked.status, checked.headers, checked.content)


def check_first_part(part: Answer) -> None:
    """Refuse what would break HTTP in the first part of a streamed answer.

    Raises:
        ModelFailed: with the reason.
    """
    check_answer(part.status, part.headers)
    if part.status in BODILESS:
        raise ModelFailed("the handler streamed an answer whose status has no body")


def _seal(
    sealer: Sealer, exchange: Exchange, status: int, headers: Headers, body: bytes | memoryview
) -> bytes:
    inside = [*headers, (b"x-request-id", exchange.request_id.encode()), NO_STORE]
    started = time.perf_counter()
    sealed = seal_response(sealer, status, inside, bytes(body))
    if exchange.stats is not None:
        exchange.stats.crypto.observe(exchange.crypto_s + time.perf_counter() - started)
    return sealed


def render_parts(
    front: Front, exchange: Exchange, answers: Sequence[Answer], out: list[bytes], *, close: bool
) -> None:
    """Append parts of a streamed answer to ``out``, as chunks, with the head before the first one.

    Args:
        close: say ``Connection: close`` in the head.
    Raises:
        ModelFailed: the answer broke off, or its head is not one of HTTP; ``exchange.streaming`` tells
            whether a head has gone out.
    """
    if not exchange.streaming:
        first = answers[0]
        check_first_part(first)
        prefix = front.renderer.learn(first.status, first.headers)
        out.append(front.renderer.stream_head(prefix, exchange.request_id, close=close))
        exchange.streaming = True
    for part in answers:
        if part.fault is not None:
            raise ModelFailed("the answer broke off")
        exchange.streamed_bytes += len(part.body)
        out.append(chunk(part.body))
    if exchange.done:
        out.append(LAST_CHUNK)
        if front.access_log is not None:
            status, size = answers[-1].status, exchange.streamed_bytes
            front.access_log.note(exchange.request_id, exchange.model, status, size, exchange.started)


def join_parts(answers: Sequence[Answer]) -> Answer:
    """One answer of the parts of one."""
    first, end = answers[0], answers[-1]
    if len(answers) == 1 or end.fault is not None:
        return end
    return Answer(first.status, first.headers, b"".join(part.body for part in answers))
