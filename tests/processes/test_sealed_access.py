"""A protected server that asks who calls, and that streams under seal: real processes, real callers."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

import cloister
from cloister.attest.appraisal import ReferenceValues
from cloister.attest.simulated import SimulatedPlatform
from cloister.errors import CloisterError, RequestTooLarge, TransportError
from cloister.kbs.audit import read_audit_key
from cloister.kbs.audit_file import verify_export_file
from cloister.serve.access.api_keys import make_api_key, remove_api_key
from tests.processes.owner import seal_handler
from tests.processes.server import Server
from tests.processes.test_protected import World, make_world

STREAMER = """
import os, time
from ts.handler_utils.utils import send_intermediate_predict_response

def handle(data, context):
    if data is None:
        return None
    asked = data[0].get("body") or data[0].get("data")
    asked = asked.decode() if isinstance(asked, (bytes, bytearray)) else asked
    if asked == "headers":
        return [context.get_all_request_header(0)]
    for number in range(int(asked)):
        part = f"{os.getpid()} " if number == 0 else f"part{number} "
        send_intermediate_predict_response([part], context.request_ids, "", 200, context)
        time.sleep(0.05)
    return ["end"]
"""
POLICY = """
@id("clinic-asks-sealed")
permit (principal in Group::"clinic", action == Action::"predict", resource == Model::"talk")
when { context.way == "sealed" };
@id("watch")
permit (principal, action == Action::"metrics", resource);
"""


@dataclass
class Guarded:
    """A running server, and what callers need."""

    world: World
    server: Server
    key: str
    stranger: str

    def http(self, key: str = "") -> httpx.Client:
        """A caller whose requests and credential travel sealed."""
        transport = cloister.transport(
            self.server.url,
            reference_values=ReferenceValues.from_toml(self.world.reference_values(self.world.flags)),
            roots=[SimulatedPlatform.load(self.world.folder / "platform").root],
        )
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(transport=transport, base_url=self.server.url, headers=headers, timeout=30)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A server with a policy, API keys and a log of decisions, whose model streams."""
    folder = tmp_path_factory.mktemp("guarded")
    extra = {
        "serve.access_policy": str(folder / "requests.cedar"),
        "serve.api_keys": str(folder / "api-keys.jsonl"),
        "serve.decision_log": str(folder / "decisions.jsonl"),
        "serve.decision_log_key": str(folder / "decisions.key"),
        "serve.pad_answers": True,
        "serve.ohttp_rotation_s": 20.0,
    }
    (folder / "requests.cedar").write_text(POLICY)
    now = datetime.now(UTC)
    key = make_api_key(folder / "api-keys.jsonl", "clinic-1", now=now, groups=("clinic",))
    stranger = make_api_key(folder / "api-keys.jsonl", "stranger", now=now)
    with make_world(folder, **extra) as world:
        seal_handler(world, "talk", STREAMER)
        with Server(world.flags) as server:
            server.wait_ready()
            yield Guarded(world, server, key, stranger)


def test_who_may_predict(guarded: Guarded) -> None:
    """A key of the right group predicts under seal; without it, or with another, or unsealed, nobody does."""
    with guarded.http(guarded.key) as http:
        assert http.post("/predictions/talk", content=b"1").text.endswith("end")
        assert http.post("/predictions/own", content=b"x").status_code == 403
        assert http.get("/models").status_code == 403
        assert http.get("/ping").status_code == 200
    with guarded.http() as http:
        refused = http.post("/predictions/talk", content=b"1")
        assert (refused.status_code, refused.json()["type"]) == (403, "AccessDeniedException")
        assert http.post("/predictions/unknown", content=b"1").status_code == 403
        assert "cloister_requests_total" in http.get("/metrics").text
    with guarded.http(guarded.stranger) as http:
        assert http.post("/predictions/talk", content=b"1").status_code == 403
    with guarded.http("clk_wrong") as http:
        refused = http.post("/predictions/talk", content=b"1")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    over_tls = httpx.post(
        f"{guarded.server.url}/predictions/talk",
        content=b"1",
        headers={"x-api-key": guarded.key},
        verify=False,
    )
    assert over_tls.status_code == 403


def test_whole_sealed_requests_too(guarded: Guarded) -> None:
    """The client that seals whole requests is held to the same policy; its answers are padded."""
    with guarded.world.client(guarded.server.url) as client, pytest.raises(CloisterError) as refused:
        client.predict("talk", "1")
    assert "may not predict" in str(refused.value)


def test_credentials_do_not_reach_the_model(guarded: Guarded) -> None:
    """Neither form of a credential is shown to the handler."""
    for headers in ({"authorization": f"Bearer {guarded.key}"}, {"x-api-key": guarded.key}):
        with guarded.http() as http:
            seen = http.post("/predictions/talk", content=b"headers", headers={**headers, "x-mine": "1"})
        assert seen.json()["x-mine"] == "1"
        assert guarded.key not in seen.text


def test_parts_come_as_they_are_made(guarded: Guarded) -> None:
    """A streamed answer arrives in parts, long before its end."""
    with guarded.http(guarded.key) as http:
        began = time.monotonic()
        with http.stream("POST", "/predictions/talk", content=b"20") as answer:
            parts = [(part, time.monotonic() - began) for part in answer.iter_text()]
    text = "".join(part for part, _ in parts)
    assert text.split()[1:] == [f"part{n}" for n in range(1, 20)] + ["end"]
    assert len(parts) > 10
    assert parts[-1][1] - parts[0][1] > 0.5


def test_killed_worker_is_an_error_at_the_caller(guarded: Guarded) -> None:
    """A worker that dies in mid stream gives a broken stream, never a short answer."""
    with guarded.http(guarded.key) as http:
        seen: list[str] = []

        def ask() -> None:
            with http.stream("POST", "/predictions/talk", content=b"200") as answer:
                for part in answer.iter_text():
                    if not seen:
                        os.kill(int(part.split()[0]), signal.SIGKILL)
                    seen.append(part)

        with pytest.raises((CloisterError, httpx.HTTPError)):
            ask()
        assert seen
        assert "end" not in "".join(seen)
        deadline = time.monotonic() + 20
        while http.post("/predictions/talk", content=b"1").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_large_request_over_the_limit(guarded: Guarded) -> None:
    """A streamed request over the limit is refused, in one piece or in many."""
    with guarded.http(guarded.key) as http:
        whole = http.post("/predictions/talk", content=bytes(6_600_000))
        assert whole.status_code == 413
        # Refused under the seal where what is inside is too long, in the clear where what came is.
        with contextlib.suppress(RequestTooLarge, TransportError):
            in_parts = http.post("/predictions/talk", content=iter([bytes(100_000)] * 80))
            assert in_parts.status_code == 413


def in_force(guarded: Guarded) -> str:
    """The policy that evidence, verified anew, speaks of."""
    with guarded.world.client(guarded.server.url) as client:
        return client.verify().identity.policy_digest.hex()


def digest_of(policy: Path) -> str:
    """What ``sha384sum`` says of the file."""
    return hashlib.sha384(policy.read_bytes()).hexdigest()


def test_policy_with_a_typo_changes_nothing(guarded: Guarded) -> None:
    """A broken policy is not taken over; a good one is, and changes the evidence; so is a withdrawn key."""
    policy = guarded.world.folder / "requests.cedar"
    keys = guarded.world.folder / "api-keys.jsonl"
    with guarded.http(guarded.key) as http:

        def status() -> int:
            return http.post("/predictions/talk", content=b"1").status_code

        try:
            assert in_force(guarded) == digest_of(policy)
            before = in_force(guarded)
            policy.write_text(POLICY.replace('"clinic"', '"clinic').replace("permit", "forbid"))
            time.sleep(3.5)
            assert status() == 200
            assert in_force(guarded) == before
            policy.write_text(POLICY + 'forbid (principal, action, resource == Model::"talk");')
            wait_for(lambda: status() == 403)
            assert in_force(guarded) == digest_of(policy) != before
            policy.write_text(POLICY)
            wait_for(lambda: status() == 200)
            extra = make_api_key(keys, "extra", now=datetime.now(UTC), groups=("clinic",))
            with guarded.http(extra) as other:
                wait_for(lambda: other.post("/predictions/talk", content=b"1").status_code == 200)
                remove_api_key(keys, "extra")
                wait_for(lambda: other.post("/predictions/talk", content=b"1").status_code == 401)
        finally:
            policy.write_text(POLICY)


def test_key_rotation_is_not_noticed(guarded: Guarded) -> None:
    """The OHTTP key changes while a client works; its requests go on, and the new key is in the evidence."""
    with guarded.http(guarded.key) as http:
        first = httpx.get(f"{guarded.server.url}/.well-known/ohttp-gateway", verify=False).content
        deadline = time.monotonic() + 30
        while httpx.get(f"{guarded.server.url}/.well-known/ohttp-gateway", verify=False).content == first:
            assert http.post("/predictions/talk", content=b"1").status_code == 200
            assert time.monotonic() < deadline
            time.sleep(0.3)
        assert http.post("/predictions/talk", content=b"1").status_code == 200


def test_log_of_decisions(guarded: Guarded) -> None:
    """Who was let in or refused is in a signed chain, without credentials or content."""
    with guarded.http(guarded.key) as http:
        http.post("/predictions/talk", content=b"1")
    folder = guarded.world.folder
    time.sleep(2.5)
    assert guarded.server.stop() == 0
    text = (folder / "decisions.jsonl").read_text()
    assert all(words in text for words in ('"api-key:clinic-1"', "clinic-asks-sealed", '"refused"'))
    assert guarded.key not in text + guarded.server.stderr
    summary = verify_export_file(folder / "decisions.jsonl", read_audit_key(folder / "decisions.jsonl.pub"))
    assert summary.entries > 3


def test_without_a_policy_nobody_may_ask(tmp_path: Path) -> None:
    """A protected server that was given no policy says so at its start, and refuses every prediction."""
    with make_world(tmp_path, **{"serve.access_policy": ""}) as world, Server(world.flags) as server:
        assert "set serve.access_policy" in server.wait_ready()
        with world.client(server.url) as client, pytest.raises(CloisterError, match="may not predict"):
            client.predict("own", "x")
        assert server.stop() == 0
        assert "set serve.access_policy" in server.stderr


def wait_for(holds: Callable[[], bool]) -> None:
    """Until it holds, for ten seconds."""
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)
