"""Both clients and a real service on loopback: what they send, when, and every attack that they refuse."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import cloister
from cloister.attest.appraisal import ReferenceValues
from cloister.attest.service import make_bundle
from cloister.attest.simulated.platform import SimulatedPlatform
from cloister.client.session import Client
from cloister.crypto.hpke import Kem
from cloister.errors import (
    BadCiphertext,
    BindingMismatch,
    CloisterError,
    ConfigError,
    MalformedInput,
    ModelFailed,
    ModelNotFound,
    Overloaded,
    PolicyDenied,
    Replayed,
    RequestTooLarge,
    ServingError,
    TransportError,
    UnknownKeyConfig,
    UntrustedRoot,
    VerificationError,
)
from cloister.ohttp import bhttp
from cloister.ohttp.capsule import KEY_PROBLEM
from cloister.ohttp.gateway import Gateway
from tests.client.blocking import BlockingAsyncClient
from tests.fakes.sealed_service import MR_TD, SETTINGS_DIGEST, SealedService, TlsKey

CANARY = "canary-7c1f"
MakeClient = Callable[..., Client]


@pytest.fixture(params=["Client", "AsyncClient"])
def make_client(
    request: pytest.FixtureRequest,
    service: SealedService,
    platform: SimulatedPlatform,
    reference_values: ReferenceValues,
) -> Any:
    """Makes clients of the service, of either kind, and closes them."""
    made: list[Any] = []
    kind: Any = Client if request.param == "Client" else BlockingAsyncClient

    def make(**options: Any) -> Client:
        chosen: dict[str, Any] = {
            "url": service.url,
            "reference_values": reference_values,
            "roots": [platform.root],
            "timeout_s": 10.0,
        } | options
        made.append(kind(**chosen))
        return made[-1]

    yield make
    for client in made:
        client.close()


def refused(client: Client, service: SealedService, kind: type[CloisterError]) -> CloisterError:
    """Predict must raise ``kind``, and nothing may have been sent for the service to open."""
    with pytest.raises(kind) as caught:
        client.predict("echo", CANARY)
    assert service.requests == []
    assert service.capsules == []
    return caught.value


# Ordinary use


def test_predict(service: SealedService, make_client: MakeClient) -> None:
    """A prediction travels to the model's path and its answer comes back."""
    answer = make_client().predict("echo", b"abc", version="2.0")
    assert (answer.status, answer.header("Content-Type")) == (200, "application/json")
    assert answer.json() == {
        "method": "POST",
        "path": "/predictions/echo/2.0",
        "type": "application/octet-stream",
        "content": base64.b64encode(b"abc").decode(),
    }


@pytest.mark.parametrize("kem", list(Kem))
def test_every_kind_of_key(service: SealedService, make_client: MakeClient, kem: Kem) -> None:
    """Which kind of key seals is the service's choice, and the caller's code is the same for all."""
    service.gateway = Gateway.generate(kem)
    assert make_client().predict("echo", b"abc").status == 200


def test_lazy_import() -> None:
    """The package offers the client by name, and no name that it lacks."""
    assert cloister.Client is Client
    with pytest.raises(AttributeError):
        _ = cloister.Server


def test_verifies_once_then_reuses(service: SealedService, make_client: MakeClient) -> None:
    """One verification serves many predictions."""
    client = make_client()
    for _ in range(3):
        client.predict("echo", b"x")
    assert service.evidence_given == 1


def test_verify_says_what_was_proved(service: SealedService, make_client: MakeClient) -> None:
    """The verdict names the models and says that the platform is simulated."""
    verified = make_client().verify()
    assert verified.result.simulated
    assert verified.identity.models[0].name == "echo"
    assert service.capsules == []


def test_ping(service: SealedService, make_client: MakeClient) -> None:
    """Health is asked through the sealed channel too."""
    assert make_client().ping().json()["path"] == "/ping"


def test_plain_http_address(service: SealedService, make_client: MakeClient) -> None:
    """Over plain HTTP the sealing alone protects, and it does."""
    with service.serving(plain=True) as url:
        assert make_client(url=url).predict("echo", b"x").status == 200


def test_nothing_about_the_request_is_outside(service: SealedService, make_client: MakeClient) -> None:
    """Model name, content type and content are absent from what a relay sees."""
    make_client().predict(CANARY, CANARY, content_type=f"text/{CANARY}")
    seen = "".join(service.outer) + repr(service.capsules)
    assert CANARY not in seen
    assert "predictions" not in seen


def test_names_cannot_leave_their_place(service: SealedService, make_client: MakeClient) -> None:
    """A model's name is one segment of the path, whatever is in it."""
    client = make_client()
    assert (
        client.predict("../ping?x=1#y/é", b"").json()["path"] == "/predictions/..%2Fping%3Fx%3D1%23y%2F%C3%A9"
    )
    for name in ("", ".", ".."):
        with pytest.raises(ConfigError):
            client.predict(name, b"")


def test_many_threads_share_a_client(service: SealedService, make_client: MakeClient) -> None:
    """A client may be used and renewed by many threads at once; every answer belongs to its question."""
    client, wrong = make_client(max_age_s=0.05), []

    def ask(number: int) -> None:
        for turn in range(4):
            content = f"{number}.{turn}".encode()
            if base64.b64decode(client.predict("echo", content).json()["content"]) != content:
                wrong.append(content)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(service.requests) == 24


# Renewal


def test_old_verification_is_renewed(service: SealedService, make_client: MakeClient) -> None:
    """A verification older than its maximum age is not relied on."""
    client = make_client(max_age_s=0.0)
    client.predict("echo", b"x")
    client.predict("echo", b"x")
    assert service.evidence_given == 2


def test_new_gateway_key_is_verified_before_use(service: SealedService, make_client: MakeClient) -> None:
    """After a rotation the client verifies the new key, then sends again."""
    client = make_client()
    client.predict("echo", b"x")
    service.gateway = Gateway.generate()
    assert client.predict("echo", b"y").status == 200
    assert service.evidence_given == 2


def test_new_gateway_key_that_is_not_attested(service: SealedService, make_client: MakeClient) -> None:
    """A relay that claims a rotation to its own key gets nothing: that key is not in genuine evidence."""
    client = make_client()
    client.predict("echo", b"x")
    honest, attacker = service.identity(), Gateway.generate()
    service.gateway = attacker
    service.make_bundle = lambda nonce: _swap(
        make_bundle(service.attester, honest, nonce), "ohttp-key-config", attacker.key_config
    )
    with pytest.raises(BindingMismatch):
        client.predict("echo", CANARY)
    assert len(service.requests) == 1


def test_gateway_that_never_knows_its_key(service: SealedService, make_client: MakeClient) -> None:
    """A gateway that refuses the key again after verification ends the attempt; there is no loop."""
    service.sealed = lambda capsule: (  # type: ignore[method-assign]
        400,
        "application/problem+json",
        json.dumps({"type": KEY_PROBLEM}).encode(),
    )
    with pytest.raises(UnknownKeyConfig):
        make_client().predict("echo", b"x")
    assert service.evidence_given == 2


def test_restarted_service_is_verified_again(
    platform: SimulatedPlatform, tls: TlsKey, other_tls: TlsKey, make_client: MakeClient
) -> None:
    """A restart gives the service new keys; the client verifies them and goes on."""
    service = SealedService(platform, tls)
    with service.serving() as url:
        client = make_client(url=url)
        client.predict("echo", b"x")
    restarted = SealedService(platform, other_tls)
    with restarted.serving(port=int(url.rpartition(":")[2])):
        assert client.predict("echo", b"y").status == 200
    assert restarted.evidence_given == 1


def wait_until(holds: Callable[[], bool]) -> None:
    """For five seconds at most."""
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_round_trips(service: SealedService, make_client: MakeClient) -> None:
    """A first answer takes one connection (TLS 1.3: one round trip) and two requests, a later one one."""
    client = make_client()
    client.predict("echo", b"x")
    (connection,) = service.connections
    assert isinstance(connection, ssl.SSLSocket)
    assert connection.version() == "TLSv1.3"
    assert (service.evidence_given, len(service.outer)) == (1, 2)
    for number in range(5):
        client.predict("echo", b"x")
        assert (len(service.connections), len(service.outer)) == (1, 3 + number)


def test_lost_connection(service: SealedService, make_client: MakeClient) -> None:
    """The connection that evidence came over may be lost: the verification holds for the next one."""
    client = make_client()
    client.predict("echo", b"x")
    service.hang_up()
    assert client.predict("echo", b"y").status == 200
    assert (len(service.connections), service.evidence_given) == (2, 1)


def test_renewed_before_it_is_too_old(service: SealedService, make_client: MakeClient) -> None:
    """A busy client verifies again in the background, and no request waits for it."""
    client = make_client(max_age_s=2.0)
    client.predict("echo", b"x")
    honest, release = service.make_bundle, threading.Event()

    def slowly(nonce: bytes) -> bytes:
        release.wait(10)
        return honest(nonce)

    service.make_bundle = slowly
    time.sleep(1.65)
    for _ in range(3):
        client.predict("echo", b"y")
    assert len(service.requests) == 4
    release.set()
    wait_until(lambda: service.evidence_given == 2)
    time.sleep(0.2)
    service.make_bundle = lambda nonce: b"{}"
    time.sleep(0.3)
    assert client.predict("echo", b"z").status == 200
    assert service.evidence_given == 2


def test_refused_in_the_background(service: SealedService, make_client: MakeClient) -> None:
    """A service that verifies no more loses its callers at once, not when they next had to verify."""
    client = make_client(max_age_s=20.0)
    client.predict("echo", b"x")
    honest = service.make_bundle
    service.make_bundle = lambda nonce: honest(bytes(32))
    with mock.patch("cloister.client.transport.EARLY", 0.0), mock.patch("cloister.client.aio.EARLY", 0.0):
        client.predict("echo", b"y")
        wait_until(lambda: service.evidence_given == 2)
        time.sleep(0.2)
        with pytest.raises(BindingMismatch):
            client.predict("echo", CANARY)
    assert len(service.requests) == 2


def test_unreachable_in_the_background(service: SealedService, make_client: MakeClient) -> None:
    """Evidence that cannot be had for the moment changes nothing before the former one is too old."""
    client = make_client(max_age_s=2.0)
    client.predict("echo", b"x")
    evidence = service.evidence
    service.evidence = lambda target: (503, "text/plain", b"")  # type: ignore[method-assign]
    time.sleep(1.65)
    for _ in range(3):
        client.predict("echo", b"y")
        time.sleep(0.03)
    time.sleep(0.4)
    with pytest.raises(TransportError, match="503"):
        client.predict("echo", CANARY)
    service.evidence = evidence  # type: ignore[method-assign]
    assert client.predict("echo", b"z").status == 200


def test_connection_that_breaks_off(service: SealedService, make_client: MakeClient) -> None:
    """A prediction whose connection breaks off is sealed anew and sent once more; not a third time."""
    client, honest = make_client(), service.sealed
    client.predict("echo", b"x")
    seen: list[bytes] = []

    def once(capsule: bytes) -> tuple[int, str, bytes]:
        service.sealed = honest  # type: ignore[method-assign]
        seen.append(capsule)
        raise ConnectionAbortedError

    service.sealed = once  # type: ignore[method-assign]
    assert client.predict("echo", b"y").status == 200
    assert seen[0] not in service.capsules

    def always(capsule: bytes) -> tuple[int, str, bytes]:
        seen.append(capsule)
        raise ConnectionAbortedError

    service.sealed = always  # type: ignore[method-assign]
    with pytest.raises(TransportError):
        client.predict("echo", b"z")
    assert len(set(seen)) == len(seen) == 3


def test_restart_under_calls(service: SealedService, other_tls: TlsKey, make_client: MakeClient) -> None:
    """Calls that are under way when the service restarts are sent to it anew, once it is verified again."""
    client, honest, held = make_client(), service.sealed, threading.Event()
    client.predict("echo", b"x")

    def hold(capsule: bytes) -> tuple[int, str, bytes]:
        held.set()
        time.sleep(5)
        raise ConnectionAbortedError

    service.sealed = hold  # type: ignore[method-assign]
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(client.predict("echo", b"y").status)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    held.wait(5)
    time.sleep(0.3)
    service.sealed = honest  # type: ignore[method-assign]
    service.restart(other_tls)
    for thread in threads:
        thread.join()
    assert answers == [200] * 4
    assert service.evidence_given == 2


# Attacks: nothing is sent


def _swap(bundle: bytes, member: str, value: bytes) -> bytes:
    document = json.loads(bundle)
    document["runtime-data"][member] = base64.b64encode(value).decode()
    return json.dumps(document).encode()


def test_replayed_evidence(service: SealedService, make_client: MakeClient) -> None:
    """Evidence made for an older nonce is refused."""
    old = service.bundle(b"\x00" * 32)
    service.make_bundle = lambda nonce: old
    refused(make_client(), service, BindingMismatch)


def test_replayed_evidence_with_the_nonce_replaced(service: SealedService, make_client: MakeClient) -> None:
    """Old evidence does not become fresh by writing the new nonce beside it."""
    old = service.bundle(b"\x00" * 32)
    service.make_bundle = lambda nonce: _swap(old, "nonce", nonce)
    refused(make_client(), service, BindingMismatch)


@pytest.mark.parametrize("member", ["ohttp-key-config", "tls-key"])
def test_swapped_key_in_evidence(service: SealedService, make_client: MakeClient, member: str) -> None:
    """Genuine evidence with another key written beside it is refused."""
    other = Gateway.generate().key_config
    service.make_bundle = lambda nonce: _swap(service.bundle(nonce), member, other)
    refused(make_client(), service, BindingMismatch)


def test_swapped_settings_in_evidence(service: SealedService, make_client: MakeClient) -> None:
    """Genuine evidence with other settings written beside it is refused."""
    bound, other = SETTINGS_DIGEST.hex().encode(), bytes(48).hex().encode()
    service.make_bundle = lambda nonce: service.bundle(nonce).replace(bound, other)
    refused(make_client(), service, BindingMismatch)


def test_another_model_listed(service: SealedService, make_client: MakeClient) -> None:
    """The list of models is bound too."""
    service.make_bundle = lambda nonce: service.bundle(nonce).replace(b'"name":"echo"', b'"name":"ohce"')
    refused(make_client(), service, BindingMismatch)


def test_relay_with_its_own_certificate(
    service: SealedService, make_client: MakeClient, other_tls: TlsKey
) -> None:
    """Genuine evidence relayed over a connection with another TLS key is refused."""
    with service.serving(other_tls) as url:
        refused(make_client(url=url), service, BindingMismatch)


def test_certificate_swapped_after_verification(
    platform: SimulatedPlatform, tls: TlsKey, other_tls: TlsKey, make_client: MakeClient
) -> None:
    """Whoever takes the address over after the verification gets nothing: pinned, then refused."""
    service = SealedService(platform, tls)
    with service.serving() as url:
        client = make_client(url=url)
        client.verify()
    with service.serving(other_tls, port=int(url.rpartition(":")[2])):
        refused(client, service, BindingMismatch)


def test_unacceptable_measurement(service: SealedService, make_client: MakeClient) -> None:
    """Genuine evidence of another program is refused, with the reason, and nothing is sent."""
    other = ReferenceValues.from_toml(f'allow_simulated = true\n[tdx]\nmr_td = ["{bytes(48).hex()}"]\n')
    error = refused(make_client(reference_values=other), service, PolicyDenied)
    assert isinstance(error, PolicyDenied)
    assert any("mr_td" in reason for reason in error.reasons)


def test_simulated_platform_is_not_accepted_by_default(
    service: SealedService, make_client: MakeClient
) -> None:
    """Reference values that do not speak of simulation refuse it, even with its root trusted."""
    strict = ReferenceValues.from_toml(f'[tdx]\nmr_td = ["{MR_TD.hex()}"]\n')
    refused(make_client(reference_values=strict), service, PolicyDenied)


def test_simulated_root_is_not_trusted_by_default(service: SealedService, make_client: MakeClient) -> None:
    """Without the simulated root given, only the vendors' roots count."""
    refused(make_client(roots=None), service, VerificationError)
    refused(make_client(roots=[]), service, VerificationError)


def test_another_simulated_root(
    service: SealedService, make_client: MakeClient, tmp_path: Path, platform: SimulatedPlatform
) -> None:
    """Evidence of a platform with another root is refused."""
    other = SimulatedPlatform.create(tmp_path / "other", datetime.now(UTC))
    refused(make_client(roots=[other.root]), service, UntrustedRoot)


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"\xff", b"x" * (2 << 20)])
def test_what_is_not_evidence(service: SealedService, make_client: MakeClient, raw: bytes) -> None:
    """Anything but a bundle is malformed, and nothing is sent."""
    service.make_bundle = lambda nonce: raw
    refused(make_client(), service, MalformedInput)


def test_failed_renewal_closes_the_way(service: SealedService, make_client: MakeClient) -> None:
    """When a later verification fails the former one does not serve on."""
    client = make_client()
    client.predict("echo", b"x")
    service.make_bundle = lambda nonce: b"{}"
    with pytest.raises(MalformedInput):
        client.verify()
    with pytest.raises(MalformedInput):
        client.predict("echo", CANARY)
    assert len(service.requests) == 1


# Attacks on the answer


@pytest.mark.parametrize(
    "change",
    [
        lambda sealed: sealed[:-1] + bytes([sealed[-1] ^ 1]),
        lambda sealed: bytes([sealed[0] ^ 1]) + sealed[1:],
        lambda sealed: sealed[:-1],
        lambda sealed: sealed[:20],
        lambda sealed: b"",
        lambda sealed: sealed + b"\x00",
    ],
    ids=["tag", "nonce", "cut", "stub", "empty", "extended"],
)
def test_tampered_answer(
    service: SealedService, make_client: MakeClient, change: Callable[[bytes], bytes]
) -> None:
    """A changed, cut or extended answer is an error, never an answer."""
    service.change_answer = change
    with pytest.raises(BadCiphertext):
        make_client().predict("echo", b"x")


def test_answer_to_another_question(service: SealedService, make_client: MakeClient) -> None:
    """An answer recorded earlier does not pass for a new one."""
    kept: list[bytes] = []

    def answer_with_the_first(sealed: bytes) -> bytes:
        kept.append(sealed)
        return kept[0]

    service.change_answer = answer_with_the_first
    client = make_client()
    client.predict("echo", b"one")
    with pytest.raises(BadCiphertext):
        client.predict("echo", b"two")


def test_unsealed_answer(service: SealedService, make_client: MakeClient) -> None:
    """An answer in the clear is not believed, whatever it says."""
    service.sealed = lambda capsule: (200, "application/json", b'{"label":"forged"}')  # type: ignore[method-assign]
    with pytest.raises(TransportError, match="without sealing"):
        make_client().predict("echo", b"x")


def test_replayed_capsule(service: SealedService, make_client: MakeClient) -> None:
    """A capsule that a relay sends twice is opened once."""
    make_client().predict("echo", b"x")
    assert service.sealed(service.capsules[0])[0] == 409
    assert len(service.requests) == 1


def test_replay_reported_by_the_gateway(service: SealedService, make_client: MakeClient) -> None:
    """A relay that is faster with the client's capsule leaves the client an error, not an answer."""
    honest = service.sealed
    service.sealed = lambda capsule: (honest(capsule), honest(capsule))[1]  # type: ignore[method-assign]
    with pytest.raises(Replayed):
        make_client().predict("echo", b"x")


def test_requests_are_dated(service: SealedService, make_client: MakeClient) -> None:
    """Each sealed request carries the date that replay protection needs, and only one."""
    make_client().predict("echo", b"x")
    assert [name for name, _ in service.requests[0].headers].count(b"date") == 1


# Errors


@pytest.mark.parametrize(
    ("status", "name", "kind"),
    [
        (404, "ModelNotFoundException", ModelNotFound),
        (413, "RequestEntityTooLargeException", RequestTooLarge),
        (503, "ServiceUnavailableException", Overloaded),
        (503, "InternalServerException", ModelFailed),
        (400, "BadRequestException", ServingError),
        (403, "AccessDenied", PolicyDenied),
        (409, "", Replayed),
        (418, "Teapot", ServingError),
    ],
)
def test_errors_of_the_service(
    service: SealedService, make_client: MakeClient, status: int, name: str, kind: type[CloisterError]
) -> None:
    """The service's error comes back as one of this package's, with its message."""
    document = json.dumps({"code": status, "type": name, "message": "what\nhappened"}).encode()
    service.answer = lambda request: bhttp.Response(status, (), document)
    with pytest.raises(kind) as caught:
        make_client().predict("echo", b"x")
    assert type(caught.value) is kind
    assert caught.value.message == "what happened"


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"type":1,"message":[]}'])
def test_errors_without_words(service: SealedService, make_client: MakeClient, content: bytes) -> None:
    """An error without the usual document still is an error, and says its status."""
    service.answer = lambda request: bhttp.Response(503, (), content)
    with pytest.raises(Overloaded, match="503"):
        make_client().predict("echo", b"x")


def test_nobody_there(make_client: MakeClient) -> None:
    """An address where nobody listens is named in one line with a hint."""
    with pytest.raises(TransportError) as caught:
        make_client(url="https://127.0.0.1:9").verify()
    assert "https://127.0.0.1:9" in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_not_a_cloister_server(service: SealedService, make_client: MakeClient) -> None:
    """A server without evidence is reported as such."""
    service.evidence = lambda target: (404, "text/html", b"<html>")  # type: ignore[method-assign]
    error = refused(make_client(), service, TransportError)
    assert "404" in error.message


@pytest.mark.parametrize(
    "url", ["", "host:8443", "ftp://host", "https://", "https://u:p@host", "https://host/?q=1", "http://[::"]
)
def test_addresses_that_are_none(make_client: MakeClient, url: str) -> None:
    """A wrong address is a configuration error, before any connection."""
    with pytest.raises(ConfigError):
        make_client(url=url)
