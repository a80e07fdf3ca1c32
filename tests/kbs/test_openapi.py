"""The broker's OpenAPI document is complete and true, and no request made from it is answered with 5xx."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from cloister.attest.simulated import SimulatedPlatform
from cloister.kbs.admin import ROLES, issue_admin_token
from cloister.kbs.owner_files import load_or_make_ed25519
from cloister.kbs.protocol import ERROR_TYPE_PREFIX
from tests.kbs.broker_process import REFERENCE, RunningBroker
from tests.kbs.conftest import SECRET
from tests.kbs.postgres_server import running_server

schemathesis = pytest.importorskip("schemathesis")
METHODS = {"get", "post", "delete"}
QUICK, SLOW = 24, 560
"""Requests to each operation; the slow ones are more than 10,000 together."""


@pytest.fixture
def fuzzed(platform: SimulatedPlatform, tmp_path: Path) -> Iterator[Any]:
    """A fuzzer of a broker on SQLite."""
    with fuzzer(platform, tmp_path) as made:
        yield made


@contextmanager
def fuzzer(platform: SimulatedPlatform, folder: Path, database: str = "") -> Iterator[Any]:
    """A broker on which everything may be set, that knows its callers for an hour, and a fuzzer of it."""
    from tests.kbs.openapi_fuzz import Fuzz

    broker = RunningBroker(
        folder,
        platform,
        database=database,
        policy="",
        reference_values="",
        allow_sample=True,
        rate_limit=0.0,
        token_ttl_s=3600.0,
        session_ttl_s=3600.0,
    )
    for uri in ("kbs:///models/key/digits", "kbs:///scratch/key/one"):
        broker.put(uri, SECRET)
    with broker.admin() as admin:
        admin.set_reference_values(REFERENCE)
        admin.set_policy("permit (principal, action, resource);")
    key = load_or_make_ed25519(broker.state / "admin.key")
    tokens = {role: issue_admin_token(key, datetime.now(UTC), role=role) for role in ROLES}
    fuzz = Fuzz(broker, tokens)
    try:
        yield fuzz
    finally:
        fuzz.close()
        broker.stop()


def document(broker: RunningBroker) -> dict[str, Any]:
    """What anybody is served."""
    with broker.http() as http:
        found: dict[str, Any] = http.get("/openapi.json").json()
        return found


def test_every_route_is_in_the_document(broker: RunningBroker) -> None:
    """Paths and methods of the document are those of the application, no more and no fewer."""
    paths = document(broker)["paths"]
    told = {(path, method.upper()) for path, item in paths.items() for method in item.keys() & METHODS}
    there = set()
    for route in broker.app.routes:
        assert isinstance(route, Route)
        if "{plugin}" not in route.path:
            path = re.sub(r"resource/\{path:path\}$", "resource/{repository}/{type}/{tag}", route.path)
            path = path.replace("{id:path}", "{id}")
            there |= {(path, method) for method in (route.methods or set()) - {"HEAD"}}
    assert told == there


def test_the_document_is_valid(broker: RunningBroker) -> None:
    """It is an OpenAPI 3.1 document, and each of its references leads somewhere."""
    found = document(broker)
    schemathesis.openapi.from_dict(found).validate()
    for reference in re.findall(r'"#/([^"]+)"', json.dumps(found)):
        place = found
        for part in reference.split("/"):
            place = place[part]
    named = {name for path in found["paths"].values() for one in path.values() if "security" in one
             for scheme in one["security"] for name in scheme}  # fmt: skip
    assert named == set(found["components"]["securitySchemes"])
    assert len({one["operationId"] for path in found["paths"].values() for one in path.values()
                if "operationId" in one}) == 21  # fmt: skip


def test_the_document_tells_nothing_of_the_broker(own_broker: RunningBroker) -> None:
    """It is the same for every broker, whatever it holds, and needs no credential."""
    before = document(own_broker)
    own_broker.put("kbs:///canary/canary/canary", SECRET)
    assert document(own_broker) == before
    assert "canary" not in json.dumps(before)
    assert str(own_broker.folder) not in json.dumps(before)


def test_every_variant_of_error_is_documented() -> None:
    """A variant that the code can answer with is one that the document names."""
    from cloister.kbs.openapi import openapi_document

    source = "".join(path.read_text() for path in Path("src/cloister/kbs").glob("*.py"))
    told = set(re.findall(ERROR_TYPE_PREFIX + r"(\w+)", json.dumps(openapi_document(administration=True))))
    used = set(re.findall(r'(?:Refused|CannotNow|_error|ErrorInformation\.of)\(\s*"(\w+)"', source))
    assert used <= told
    assert "AdminAuth" in used


def test_no_5xx_in_some_requests(fuzzed: Any) -> None:
    """Valid and invalid requests, every kind of credential: no 5xx, and no answer that is not documented."""
    fuzzed.run_all(QUICK)
    assert sum(fuzzed.statuses.values()) >= 450
    answered = {name for name, status in fuzzed.statuses if status == 200}
    assert {"auth", "getResource", "listResources", "storeResource", "audit", "showResource"} <= answered


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_5xx_in_ten_thousand_requests(fuzzed: Any) -> None:
    """The same with more than 10,000 requests."""
    fuzzed.run_all(SLOW)
    total = sum(fuzzed.statuses.values())
    print(f"{total} requests")
    for (name, status), count in sorted(fuzzed.statuses.items()):
        print(f"{name:26} {status} {count}")
    assert total >= 10_000
    assert not [status for _, status in fuzzed.statuses if status >= 500]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_5xx_on_postgresql(platform: SimulatedPlatform, tmp_path: Path) -> None:
    """Another database has other limits (NUL, lengths, ranges), and they are no 5xx either."""
    with running_server() as server, fuzzer(platform, tmp_path, f"{server}/postgres") as made:
        made.run_all(100)
        assert sum(made.statuses.values()) >= 2000
