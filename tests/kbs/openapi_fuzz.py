"""Requests that Schemathesis makes from the broker's OpenAPI document, with every kind of credential."""

from __future__ import annotations

import base64
import copy
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.kbs.broker_process import Run, RunningBroker

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
NOBODY, ADMIN, OWNER, AUDITOR, TEE, SESSION, CHALLENGED = WHO = (
    *("nobody", "admin", "owner", "auditor"),
    *("tee", "session", "challenged"),
)
TEES = (*("tdx",) * 6, "sgx", "snp", "az-snp-vtpm", "az-tdx-vtpm", "tpm", "sample", "cca", "nvidia")
KEPT = {"repository": "models", "type": "key", "tag": "digits"}
SCRATCH = {"repository": "scratch", "type": "key", "tag": "one"}
POLICIES = (
    "permit (principal, action, resource);",
    "package policy\nimport rego.v1\ndefault allow = false\nallow if input.submods\n",
    "package policy\nimport rego.v1\nexecutables := 3\nhardware := 2\nconfiguration := 2\n",
    "permit (principal",
    "",
    "\x00",
)
REFERENCES = ("", "allow_simulated = true\n[tdx]\nmr_td = ['" + "11" * 48 + "']\n", "[tdx]\nmr_td = 3", "[")
PAYLOADS = (b'{"svn": [1]}', b"{}", b"[" * 999, b'{"a\\u0000b": 1}')
DESTRUCTIVE = frozenset({"deleteResource", "revoke", "setMinimum"})


@dataclass
class Fuzz:
    """A broker under fuzz, and what it answered so far."""

    broker: RunningBroker
    tokens: dict[str, str]
    """Bearer tokens by role."""
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    """How often each operation gave each status."""

    def __post_init__(self) -> None:
        self.http = requests.Session()
        self.http.trust_env = False
        self.http.verify = str(self.broker.ca)
        document = self.http.get(f"{self.broker.url}/openapi.json", timeout=10).json()
        self.schema = schemathesis.openapi.from_dict(document)
        self.run = Run(self.broker, self.broker.http())
        self.run.auth()
        self.tokens[TEE] = self.run.attest(self.run.body()).json()["token"]
        self.session = self.run.http.cookies["kbs-session-id"]

    def close(self) -> None:
        """Close connections."""
        self.http.close()
        self.run.http.close()

    def run_all(self, requests_each: int) -> None:
        """So many requests to every operation; a 5xx or an answer that is not in the document fails."""
        for result in self.schema.get_all_operations():
            operation = result.ok()
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                self._run_operation(operation, mode, requests_each // 2)

    def _run_operation(self, operation: Any, mode: GenerationMode, examples: int) -> None:
        bounded = settings(
            max_examples=examples,
            phases=[Phase.generate],
            database=None,
            deadline=None,
            derandomize=False,
            suppress_health_check=list(HealthCheck),
        )

        @bounded
        @given(case=operation.as_strategy(generation_mode=mode), draw=st.randoms(use_true_random=True))
        def one(case: Any, draw: Any) -> None:
            self._one(operation.definition.raw["operationId"], case, draw)

        try:
            one()
        except AssertionError:
            raise
        except Exception as error:
            if type(error).__name__ != "Unsatisfiable":  # nothing about it can be wrong
                raise

    def _one(self, name: str, case: Any, draw: Any) -> None:
        self._steer(name, case, draw)
        likely = {"protocol": (TEE, SESSION)}.get(case.operation.definition.raw["tags"][0], (ADMIN,))
        who = draw.choice(likely if draw.random() < 0.5 else WHO)
        if name in DESTRUCTIVE and draw.random() < 0.3:
            self.broker.put("kbs:///" + "/".join(SCRATCH.values()), b"again")
        headers = {"Authorization": f"Bearer {self.tokens[who]}"} if who in self.tokens else {}
        cookies = {}
        if who == SESSION:
            cookies = {"kbs-session-id": self.session}
        if who == CHALLENGED or (name == "attest" and draw.random() < 0.7):
            cookies = {"kbs-session-id": self._challenged(name, case, draw)}
        response = case.call(
            base_url=self.broker.url,
            session=self.http,
            headers=headers,
            cookies=cookies,
            timeout=30,
            verify=str(self.broker.ca),
        )
        self.http.cookies.clear()
        self.statuses[name, response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    def _steer(self, name: str, case: Any, draw: Any) -> None:
        """Have some of the requests name what there is, or they would never get past the first look."""
        if draw.random() < 0.5:
            return
        known = SCRATCH if name in DESTRUCTIVE else draw.choice([KEPT, SCRATCH])
        if "repository" in case.path_parameters:
            case.path_parameters.update(known)
        if not isinstance(case.body, dict):
            if name == "setReferenceValues":
                case.body = draw.choice(REFERENCES)
            return
        if "uri" in case.body:
            case.body["uri"] = "kbs:///" + "/".join(known.values()) + draw.choice(["", "?version=1"])
        if "policy" in case.body:
            text = draw.choice(POLICIES).encode()
            case.body["policy"] = base64.urlsafe_b64encode(text).decode().rstrip("=")
            case.body["policy_id"] = draw.choice(["default_cpu", "default", "a\x00b"])
        if "payload" in case.body:
            case.body["payload"] = base64.b64encode(draw.choice(PAYLOADS)).decode()

    def _challenged(self, name: str, case: Any, draw: Any) -> str:
        """A session that waits for evidence; half of the evidence is honest but for one part of it."""
        tee = draw.choice(TEES)
        self.run.http.cookies.clear()
        self.run.auth(tee=tee)
        if name == "attest" and isinstance(case.body, dict):
            honest = self.run.body()
            made = copy.deepcopy(case.body)
            primary = made.get("tee-evidence")
            if isinstance(primary, dict):
                primary = primary.get("primary_evidence")
            choice = draw.randrange(4)
            if choice == 0 and isinstance(made.get("runtime-data"), dict):
                made["runtime-data"]["nonce"] = self.run.nonce
                case.body = made
            elif choice == 1:
                honest["tee-evidence"]["primary_evidence"] = primary
                case.body = honest
            elif choice == 2:
                part = draw.choice(list(honest))
                honest[part] = made.get(part)
                case.body = honest
            else:
                case.body = honest | {key: made[key] for key in made.keys() & {"init-data"}}
        return str(self.run.http.cookies.get("kbs-session-id") or "none")
