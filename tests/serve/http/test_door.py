"""Tokens, policy and limits in front of the routes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloister.errors import ModelNotFound
from cloister.policy.requests import FixedPolicy, WatchedPolicy
from cloister.serve.access.api_keys import make_api_key, remove_api_key
from cloister.serve.access.control import AccessControl, Forbidden, TooManyRequests, Unauthenticated
from cloister.serve.access.limits import CallerLimits
from cloister.serve.http.access import TokenAccess
from cloister.serve.http.actions import Asked
from cloister.serve.http.door import Door
from cloister.serve.http.errors import render_failure
from cloister.serve.refusals import InvalidKey
from cloister.serve.registry import Registry
from cloister.serve.torchserve.key_file import KeyFile, TokenKind
from cloister.settings import ServeSettings

PREDICT, MANAGE = Asked("predict", "m"), Asked("manage", "m")
POLICY = """
permit (principal, action == Action::"predict", resource);
permit (principal, action == Action::"manage", resource) when { principal.kind == "token" };
permit (principal in Group::"ops", action == Action::"manage", resource);
"""


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    """One header."""
    return [(b"authorization", b"Bearer " + key.encode())]


def make_door(folder: Path, *, tokens: bool = False, **options: Any) -> tuple[Door, dict[str, Any]]:
    """A door with the policy, and TorchServe's tokens in front of it if asked for."""
    keys = KeyFile(folder / "tokens.json", expiration_min=60) if tokens else None
    door = Door(TokenAccess(keys), Registry(ServeSettings()))
    (folder / "requests.cedar").write_text(POLICY)
    door.use(AccessControl(WatchedPolicy(folder / "requests.cedar"), **options))
    return door, json.loads((folder / "tokens.json").read_text()) if tokens else {}


def test_without_a_policy_everybody_may_come_in() -> None:
    """Where nothing was asked for, nothing is decided."""
    door = Door(TokenAccess(None), Registry(ServeSettings()))
    door.require(TokenKind.MANAGEMENT, "open", MANAGE, [])
    assert not door.counts


def test_an_empty_policy_lets_nobody_in() -> None:
    """But for what needs no permission."""
    door = Door(TokenAccess(None), Registry(ServeSettings()))
    door.use(AccessControl(FixedPolicy()))
    door.require(None, "sealed", None, [])
    with pytest.raises(Forbidden):
        door.require(None, "sealed", PREDICT, [])


def test_tokens_are_callers(tmp_path: Path) -> None:
    """TorchServe's token makes its bearer a caller whom the policy knows; so does another credential."""
    keys = tmp_path / "keys"
    ops = make_api_key(keys, "ops", now=datetime.now(UTC), groups=("ops",))
    other = make_api_key(keys, "other", now=datetime.now(UTC))
    door, tokens = make_door(tmp_path, tokens=True, api_keys=keys)
    door.require(TokenKind.MANAGEMENT, "tls", MANAGE, bearer(tokens["management"]["key"]))
    door.require(TokenKind.MANAGEMENT, "tls", MANAGE, bearer(ops))
    with pytest.raises(Forbidden):
        door.require(TokenKind.MANAGEMENT, "tls", MANAGE, bearer(other))
    for wrong in ([], bearer("x"), bearer(tokens["inference"]["key"]), bearer("clk_wrong")):
        with pytest.raises(InvalidKey):
            door.require(TokenKind.MANAGEMENT, "tls", MANAGE, wrong)


def test_decisions_are_remembered_and_forgotten(tmp_path: Path) -> None:
    """The same question is not decided anew within a second, unless keys or policy have changed."""
    keys = tmp_path / "keys"
    key = make_api_key(keys, "one", now=datetime.now(UTC))
    door, _ = make_door(tmp_path, api_keys=keys)
    control: Any = door._control
    decided: list[Any] = []
    admit = control.admit

    def counted(*args: Any, **options: Any) -> Any:
        decided.append(args)
        return admit(*args, **options)

    control.admit = counted
    for _ in range(3):
        door.require(None, "tls", PREDICT, [*bearer(key), (b"date", b"x")])
    assert len(decided) == 1
    with pytest.raises(Forbidden):
        door.require(None, "tls", MANAGE, bearer(key))
    before = door.generation
    remove_api_key(keys, "one")
    control.refresh()
    assert door.generation != before
    with pytest.raises(Unauthenticated):
        door.require(None, "tls", PREDICT, bearer(key))


def test_limits_count_every_request(tmp_path: Path) -> None:
    """With limits nothing is remembered, and the refusal says when to come again."""
    door, _ = make_door(tmp_path, limits=CallerLimits(per_day=2))
    assert door.counts
    for _ in range(2):
        door.require(None, "tls", PREDICT, [])
    with pytest.raises(TooManyRequests) as refused:
        door.require(None, "tls", PREDICT, [])
    response = render_failure(refused.value)
    assert response.status == 429
    assert int(response.header(b"retry-after")) > 0


def test_the_version_that_answers_is_the_one_that_is_judged(tmp_path: Path) -> None:
    """A policy on a version holds for who names it and for who lets it be chosen."""
    default = ["2.0"]

    class Models:
        generation = 0

        def find(self, name: str, version: str | None) -> Any:
            if name != "m" or version not in (None, "1.0", "2.0"):
                raise ModelNotFound("no such model")
            return SimpleNamespace(version=version or default[0])

    models: Any = Models()
    door = Door(TokenAccess(None), models)
    policy = 'permit (principal, action, resource); forbid (principal, action, resource == Model::"m")'
    door.use(AccessControl(FixedPolicy(policy + ' when { resource.version == "2.0" };')))
    door.require(None, "tls", Asked("predict", "m", "1.0"), [])
    for asked in (Asked("predict", "m"), Asked("predict", "m", "2.0")):
        with pytest.raises(Forbidden):
            door.require(None, "tls", asked, [])
    default[0] = "1.0"
    models.generation += 1
    door.require(None, "tls", Asked("predict", "m"), [])
    with pytest.raises(Forbidden):
        door.require(None, "tls", Asked("predict", "m", "2.0"), [])
