"""Which condition of which ``permit`` kept it from applying, so that a refusal says what to look at.

Each permit is taken apart once: its scope, and every condition joined by ``&&`` in its ``when`` clauses,
becomes a policy of its own. Evaluating these tells which of them hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import cedarpy
from cedarpy import pst

MAX_CONDITION_CHARACTERS = 160
_SCOPE = "its scope"


@dataclass(frozen=True, slots=True)
class NearMiss:
    """One permit, taken apart."""

    name: str
    conditions: dict[str, str]
    """Policy id of each part, and its text."""
    parts: cedarpy.PolicySet

    def failed_conditions(self, request: dict[str, Any], entities: cedarpy.Entities) -> list[str]:
        """Texts of the conditions that do not hold for this request."""
        result = cedarpy.is_authorized(request, self.parts, entities)
        held = set(result.diagnostics.reasons)
        if "scope" not in held:
            return [_SCOPE]
        return [text for policy_id, text in self.conditions.items() if policy_id not in held] or [_SCOPE]


def near_misses(policies: cedarpy.PolicySet) -> tuple[NearMiss, ...]:
    """Take every permit of a policy set apart; none where it is nested too deeply to be taken apart."""
    try:
        tree = policies.to_pst()
        permits = (policy for policy in tree.static_policies.values() if policy.effect == "permit")
        return tuple(_take_apart(policy) for policy in permits)
    except ValueError:
        return ()


def _take_apart(policy: pst.Template) -> NearMiss:
    bare = {"scope": replace(policy, id="scope", clauses=())}
    conditions = {"scope": _SCOPE}
    for number, clause in enumerate(_conjuncts(policy)):
        policy_id = f"condition{number}"
        bare[policy_id] = replace(policy, id=policy_id, clauses=(clause,))
        conditions[policy_id] = _text(bare[policy_id])
    tree = pst.PolicySet(templates={}, static_policies=bare, template_links=())
    name = policy.annotations.get("id") or policy.id
    return NearMiss(name, conditions, cedarpy.PolicySet.from_pst(tree))


def _conjuncts(policy: pst.Template) -> Iterator[pst.Clause]:
    for clause in policy.clauses:
        if isinstance(clause, pst.When):
            yield from (pst.When(expr=part) for part in _split(clause.expr))
        else:
            yield clause


def _split(expr: pst.Expr) -> Iterator[pst.Expr]:
    if isinstance(expr, pst.BinaryOp) and expr.op == "and":
        yield from _split(expr.left)
        yield from _split(expr.right)
    else:
        yield expr


def _text(policy: pst.Template) -> str:
    single = pst.PolicySet(templates={}, static_policies={policy.id: policy}, template_links=())
    rendered = " ".join(str(cedarpy.PolicySet.from_pst(single)).split())
    found = re.search(r"(when|unless) \{ (.*) \};?$", rendered)
    if found is None:
        return _SCOPE
    text = re.sub(r"\((context(?:\.\w+)+|resource\.\w+|principal\.\w+)\)", r"\1", found[2])
    text = text if found[1] == "when" else f"not ({text})"
    return text if len(text) <= MAX_CONDITION_CHARACTERS else text[: MAX_CONDITION_CHARACTERS - 3] + "..."
