"""The broker's clients: what they get, what they refuse, and what they say when they do not."""

from __future__ import annotations

import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cloister.attest.simulated import SimulatedPlatform
from cloister.errors import ConfigError, KeyUnavailable, MalformedInput, TransportError
from cloister.kbs.client import BrokerClient
from cloister.kbs.server import bind
from tests.kbs.broker_process import RunningBroker, Tee
from tests.kbs.conftest import SECRET


def test_release(broker: RunningBroker) -> None:
    """A TEE gets its resources, the second one without attesting again."""
    broker.put("kbs:///models/key/second", b"two")
    with broker.client() as client:
        assert client.get_resource("kbs:///models/key/digits") == SECRET
        attested = [line for line in broker.logs if line["event"] == "attested"]
        assert client.get_resource("kbs:///models/key/second") == b"two"
        assert [line for line in broker.logs if line["event"] == "attested"] == attested


def test_refused_attestation_carries_the_reason(broker: RunningBroker) -> None:
    """The failed check of the broker's appraisal stands in the client's error, in one line."""
    with broker.client(mr_td=bytes(48)) as client, pytest.raises(KeyUnavailable, match="mr_td") as caught:
        client.get_resource("kbs:///models/key/digits")
    assert "\n" not in str(caught.value)


def test_missing_resource_is_named(broker: RunningBroker) -> None:
    """A resource that the broker does not have is named."""
    with broker.client() as client, pytest.raises(KeyUnavailable, match="models/key/absent"):
        client.get_resource("kbs:///models/key/absent")


def test_a_lost_session_is_renewed(broker: RunningBroker) -> None:
    """When the broker has forgotten the session, the client attests once more and goes on."""
    with broker.client() as client:
        client.get_resource("kbs:///models/key/digits")
        broker.app.state.broker._sessions._attested.clear()
        assert client.get_resource("kbs:///models/key/digits") == SECRET


def test_a_broker_that_is_not_there(platform: SimulatedPlatform) -> None:
    """Nobody listening is a TransportError that names the URL."""
    with bind("127.0.0.1", 0) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
    with BrokerClient(url, attester=Tee(platform)) as client, pytest.raises(TransportError, match=url):
        client.get_resource("kbs:///a/b/c")


def test_another_certificate_is_not_talked_to(broker: RunningBroker, platform: SimulatedPlatform) -> None:
    """Without the broker's certificate the client says nothing to it."""
    with (
        BrokerClient(broker.url, attester=Tee(platform)) as client,
        pytest.raises(TransportError, match="certificate"),
    ):
        client.get_resource("kbs:///a/b/c")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:1", "ftp://x"])
def test_only_https(url: str, platform: SimulatedPlatform) -> None:
    """A client does not begin with a URL that is not HTTPS."""
    with pytest.raises(ConfigError, match="https"):
        BrokerClient(url, attester=Tee(platform))


def test_unusable_certificate_file(platform: SimulatedPlatform, tmp_path: Path) -> None:
    """A missing or damaged certificate file is named."""
    (tmp_path / "bad.pem").write_text("nothing")
    for name in ("bad.pem", "absent.pem"):
        with pytest.raises(ConfigError, match=name):
            BrokerClient("https://127.0.0.1:1", attester=Tee(platform), ca=tmp_path / name)


def test_bad_uri_is_refused_before_anything_is_sent(broker: RunningBroker) -> None:
    """A URI that is none never reaches the network."""
    with broker.client() as client, pytest.raises(MalformedInput):
        client.get_resource("https:///a/b/c")


def test_administration(broker: RunningBroker) -> None:
    """The owner stores versions, lists them, and deletes them; a TEE gets the newest or the one it names."""
    with broker.admin() as admin, broker.client() as client:
        assert [admin.put_version("kbs:///admin/test/x", data) for data in (b"1", b"22")] == [1, 2]
        listed = [row for row in admin.list_resources() if row["uri"] == "kbs:///admin/test/x"]
        assert [(row["version"], row["bytes"]) for row in listed] == [(1, 1), (2, 2)]
        assert client.get_resource("kbs:///admin/test/x") == b"22"
        assert client.get_resource("kbs:///admin/test/x?version=1") == b"1"
        admin.delete_resource("kbs:///admin/test/x")
        with pytest.raises(KeyUnavailable):
            client.get_resource("kbs:///admin/test/x")
        with pytest.raises(KeyUnavailable, match="not found"):
            admin.delete_resource("kbs:///admin/test/x")
        with pytest.raises(KeyUnavailable, match="empty"):
            admin.put_resource("kbs:///admin/test/x", b"")


def test_another_admin_token(broker: RunningBroker) -> None:
    """Somebody else's token stores nothing, and the error does not repeat it."""
    with broker.admin("not.a.token") as admin, pytest.raises(KeyUnavailable, match="admin token") as caught:
        admin.put_resource("kbs:///a/b/c", b"x")
    assert "not.a.token" not in str(caught.value)


def test_many_clients_at_once(broker: RunningBroker) -> None:
    """Eight TEEs at once each get the key, and the audit log keeps its chain."""

    def fetch(_number: int) -> bytes:
        with broker.client() as client:
            return client.get_resource("kbs:///models/key/digits")

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(fetch, range(24))) == {SECRET}


def test_localhost_and_old_tls(broker: RunningBroker, platform: SimulatedPlatform) -> None:
    """The certificate is good for the name too, and the cookie works there."""
    url = broker.url.replace("127.0.0.1", "localhost")
    with BrokerClient(url, attester=Tee(platform), ca=broker.ca) as client:
        assert client.get_resource("kbs:///models/key/digits") == SECRET


def test_http_on_the_https_port(broker: RunningBroker) -> None:
    """Plain HTTP gets no answer on the broker's port."""
    import httpx

    with pytest.raises(httpx.HTTPError):
        httpx.get(broker.url.replace("https", "http") + "/healthz", trust_env=False)


class WrongBroker:
    """Answers each request with the next canned response."""

    brokers = 1

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def request(self, *_args: Any, **_options: Any) -> Any:
        """The next answer."""
        return self.answers.pop(0)

    def forget_cookies(self) -> None:
        """Nothing to forget."""

    def close(self) -> None:
        """Nothing to close."""


def test_a_broker_that_breaks_the_protocol(platform: SimulatedPlatform) -> None:
    """A challenge or a resource in another form is a TransportError, not a crash."""
    import httpx

    client = BrokerClient("https://127.0.0.1:1", attester=Tee(platform))
    client._connection.close()
    for answers in (
        [httpx.Response(200, content=b"no")],
        [httpx.Response(200, json={"nonce": ""})],
        [
            httpx.Response(200, json={"nonce": "bm9uY2U="}),
            httpx.Response(200, json={"token": "t"}),
            httpx.Response(200, json={"protected": 1}),
        ],
    ):
        client._key = None
        client._connection = WrongBroker(*answers)  # type: ignore[assignment]
        with pytest.raises(TransportError):
            client.get_resource("kbs:///a/b/c")


def test_tls_is_1_3(broker: RunningBroker) -> None:
    """The broker speaks TLS 1.3 with clients that do."""
    import socket

    context = ssl.create_default_context(cafile=str(broker.ca))
    host, port = broker.url.removeprefix("https://").split(":")
    with (
        socket.create_connection((host, int(port))) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        assert secured.version() == "TLSv1.3"
