"""A sealed request is answered once: not twice, not by many at once, not after a restart."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from cloister.ohttp import bhttp
from cloister.ohttp.capsule import KeyConfig, parse_key_configs, seal_request
from cloister.ohttp.replay import render_date
from tests.processes.server import Server
from tests.processes.test_protected import make_world

GATEWAY = "/.well-known/ohttp-gateway"
SEALED = {"content-type": "message/ohttp-req"}


def key_of(url: str) -> KeyConfig:
    """The gateway's current key; that it is attested is tested elsewhere."""
    return parse_key_configs(httpx.get(url + GATEWAY).content)[0]


def capsule(key: KeyConfig, *, age_s: float = 0.0) -> bytes:
    """A sealed prediction that was made so long ago."""
    date = render_date(datetime.now(UTC) - timedelta(seconds=age_s))
    request = bhttp.Request(b"POST", b"https", b"", b"/predictions/own", ((b"date", date),), b"x")
    return seal_request(key, bhttp.render_request(request))[0]


def test_a_sealed_request_is_answered_once(tmp_path: Path) -> None:
    """409 for the second time, for all but one of many at once; and it is counted."""
    with make_world(tmp_path) as world:
        url = f"http://127.0.0.1:{world.http_port}"
        with Server(world.flags) as server, httpx.Client(base_url=url, headers=SEALED, timeout=30) as http:
            server.wait_ready()
            sealed = capsule(key_of(url))
            assert [http.post(GATEWAY, content=sealed).status_code for _ in range(3)] == [200, 409, 409]
            at_once = capsule(key_of(url))
            with ThreadPoolExecutor(16) as threads:
                answers = list(
                    threads.map(
                        lambda _: httpx.post(url + GATEWAY, content=at_once, headers=SEALED), range(32)
                    )
                )
            statuses = [answer.status_code for answer in answers]
            assert (statuses.count(200), statuses.count(409)) == (1, 31)
            assert len({answer.content for answer in answers if answer.status_code == 409}) == 1
            metrics = httpx.get(f"{server.url}/metrics", verify=False).text
            counted = [
                line for line in metrics.splitlines() if "replayed" in line and not line.startswith("#")
            ]
            assert [float(line.split()[-1]) for line in counted] == [33.0]
            untouched = capsule(key_of(url))
            assert server.stop() == 0
        with Server(world.flags) as server, httpx.Client(base_url=url, headers=SEALED, timeout=30) as http:
            server.wait_ready()
            for recorded in (sealed, at_once, untouched):
                refused = http.post(GATEWAY, content=recorded)
                assert refused.status_code == 400
                assert refused.json()["type"].endswith("#ohttp-key")
            assert http.post(GATEWAY, content=capsule(key_of(url))).status_code == 200
