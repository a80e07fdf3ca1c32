"""The access log: what is in a line, and what is not."""

from __future__ import annotations

import json

from cloister.serve.http import access_log
from cloister.serve.http.access_log import AccessLog
from tests.serve.http.front_end import front_end, post, run


def test_lines_of_both_paths() -> None:
    """Every answer is a line with model, status, length and time; nothing that a caller sent is in it."""
    written: list[str] = []
    log = AccessLog(written.append)

    async def test() -> None:
        async with front_end(access_log=log) as end:
            wire = await end.connect()
            await wire.send(post(b"canary", "/predictions/echo?canary=1", headers="x-canary: 1\r\n"))
            _, headers, _ = await wire.answer()
            await wire.send(post(b"canary", "/canary"))
            await wire.answer()
            log.flush()
            assert len(written) == 1
            hot, cold = (json.loads(line) for line in written[0].splitlines())
            assert hot["request_id"] == headers["x-request-id"]
            assert (hot["model"], hot["status"], hot["bytes"]) == ("echo", 200, len("canary=1canary"))
            assert (cold["model"], cold["status"], cold["bytes"]) == ("", 200, len("cold canary"))
            assert "canary" not in written[0]
            log.flush()
            assert len(written) == 1

    run(test())


def test_many_lines_are_written_early() -> None:
    """A busy second does not gather lines without limit."""
    written: list[str] = []
    log = AccessLog(written.append)
    for _ in range(access_log.MAX_WAITING + 1):
        log.note("id", "model", 200, 1, 0.0)
    assert [text.count("\n") for text in written] == [access_log.MAX_WAITING]
