"""Revocation and minimum versions: what the owner ends is ended on the next request, and recorded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloister.errors import KeyUnavailable
from cloister.kbs.audit import read_audit_log, verify_audit_log
from cloister.kbs.client import BrokerClient
from tests.kbs.broker_process import RunningBroker

URI = "kbs:///models/key/m"


@pytest.fixture
def client(own_broker: RunningBroker) -> Iterator[BrokerClient]:
    """A TEE that has attested once; the broker holds three versions of a key."""
    for data in (b"one", b"two", b"three"):
        own_broker.put(URI, data)
    with own_broker.client() as opened:
        assert opened.get_resource(URI) == b"three"
        yield opened


def refusal(client: BrokerClient, uri: str) -> str:
    """The reason for which a resource is not released."""
    with pytest.raises(KeyUnavailable) as caught:
        client.get_resource(uri)
    return caught.value.message


def last(broker: RunningBroker) -> dict[str, object]:
    """The newest audit entry; the log verifies."""
    verify_audit_log(broker.settings)
    return read_audit_log(broker.settings)[-1]


def test_a_revoked_resource_is_refused_on_the_next_request(
    own_broker: RunningBroker, client: BrokerClient
) -> None:
    """A session that was given the key before gets it no more; the reason is told and recorded."""
    with own_broker.admin() as admin:
        admin.revoke(URI, "laptop lost")
        assert last(own_broker)["kind"] == "revoked"
        for uri in (URI, f"{URI}?version=1", f"{URI}?version=3"):
            assert "revoked: laptop lost" in refusal(client, uri)
        entry = last(own_broker)
        assert (entry["kind"], "laptop lost" in str(entry["reason"])) == ("refusal", True)
        assert client.get_resource("kbs:///models/key/digits")
        admin.restore(URI)
        assert client.get_resource(URI) == b"three"


def test_a_revoked_version_does_not_fall_back_to_an_older_one(
    own_broker: RunningBroker, client: BrokerClient
) -> None:
    """When the newest version is revoked, no version named is no release, not the one before."""
    with own_broker.admin() as admin:
        admin.revoke(f"{URI}?version=3", "leaked")
        assert "leaked" in refusal(client, URI)
        assert client.get_resource(f"{URI}?version=2") == b"two"
        facts = admin.show_resource(URI)
        assert [v["standing"] for v in facts["versions"]] == ["released", "released", "revoked: leaked"]


def test_revocation_outlives_deletion(own_broker: RunningBroker, client: BrokerClient) -> None:
    """Deleting a revoked resource and storing it again does not bring it back."""
    with own_broker.admin() as admin:
        admin.revoke(URI, "gone")
        admin.delete_resource(URI)
        admin.put_resource(URI, b"four")
    assert "gone" in refusal(client, URI)


def test_versions_below_the_minimum_are_refused(own_broker: RunningBroker, client: BrokerClient) -> None:
    """A roll-back to an older key version is refused by the broker, with both versions named."""
    with own_broker.admin() as admin:
        assert admin.set_minimum(URI, 3) == 0
        reason = refusal(client, f"{URI}?version=2")
        assert "version 2 is older than 3" in reason
        assert client.get_resource(f"{URI}?version=3") == b"three"
        assert [v["standing"] for v in admin.show_resource(URI)["versions"]] == ["old", "old", "released"]


def test_a_policy_may_name_an_old_version(own_broker: RunningBroker, client: BrokerClient) -> None:
    """Only a policy for the action release-old lets an old version out again."""
    with own_broker.admin() as admin:
        admin.set_minimum(URI, 3)
    own_broker.policy.write_text(
        own_broker.policy.read_text()
        + '@id("roll-back") permit (principal, action == Action::"release-old", resource)'
        ' when { resource.tag == "m" && resource.version == 2 };'
    )
    assert client.get_resource(f"{URI}?version=2") == b"two"
    assert last(own_broker)["policy_ids"] == ["roll-back"]
    assert "older than 3" in refusal(client, f"{URI}?version=1")


def test_what_cannot_be_ended(own_broker: RunningBroker, client: BrokerClient) -> None:
    """No reason, no such resource or version, a minimum above every version: refused, nothing changes."""
    with own_broker.admin() as admin:
        for act in (
            lambda: admin.revoke(URI, " "),
            lambda: admin.revoke(URI, "x" * 301),
            lambda: admin.revoke("kbs:///a/b/c", "r"),
            lambda: admin.revoke(f"{URI}?version=9", "r"),
            lambda: admin.restore(URI),
            lambda: admin.set_minimum(URI, 4),
            lambda: admin.show_resource("kbs:///a/b/c"),
        ):
            with pytest.raises(KeyUnavailable):
                act()
    assert client.get_resource(URI) == b"three"


def test_rotation_of_the_kek_under_a_running_broker(own_broker: RunningBroker, client: BrokerClient) -> None:
    """A rotation over the network moves every key; releases go on in the same session."""
    with own_broker.admin() as admin:
        before = {v["kek"] for v in admin.show_resource(URI)["versions"]}
        done = admin.rotate_kek()
        assert done["rewrapped"] == 4
        after = {v["kek"] for v in admin.show_resource(URI)["versions"]}
    assert after == {done["kek_id"]}
    assert not before & after
    assert client.get_resource(URI) == b"three"
    assert last(own_broker)["kind"] == "release"
