"""Broker and caches as processes: what goes on without the broker, what does not, and where keys are."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cloister.errors import CloisterError, KeyUnavailable, TransportError
from cloister.kbs.client import BrokerClient
from cloister.kbs.tls import make_certificate
from tests.kbs.cache.site import Running, Site, free_port, new_site

KEY = b"CANARY-DEK-" + bytes(range(180, 201))
OTHER = b"CANARY-DEK-" + bytes(range(201, 222))
A, B = "kbs:///models/dek/a", "kbs:///models/dek/b"
COLD_S = 5.0
"""Longest time until a cold cache says that the broker is down."""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A site whose broker runs and holds two keys."""
    with new_site() as made, made.broker():
        with made.admin() as admin:
            admin.put_resource(A, KEY)
            admin.put_resource(B, OTHER)
        yield made


@pytest.fixture(scope="module")
def cache(site: Site) -> Iterator[Running]:
    """A cache that holds key A, on a socket and over HTTPS."""
    with site.cache("main", uris=[A], port=free_port()) as running:
        yield running


def remote(site: Site, cache: Running, **quote: bytes) -> BrokerClient:
    """A TEE on another machine, which attests to the cache as to a broker."""
    url = cache.wait_listening()["url"]
    return BrokerClient(url, attester=site.tee(**quote), ca=site.folder / "main.pem")


def wait_until(condition: type[CloisterError], site: Site, name: str, uri: str) -> CloisterError:
    """The error of this kind that a caller sees within ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with site.local(name) as client:
                client.get_resource(uri)
        except condition as error:
            return error
        time.sleep(0.05)
    raise AssertionError(f"{uri} is still served")


def test_both_ways_give_the_key(site: Site, cache: Running) -> None:
    """A process of the machine and a TEE of another one get what the broker has, and nothing unlisted."""
    for client in (site.local("main"), remote(site, cache)):
        with client:
            assert client.get_resource(A) == KEY
            with pytest.raises(KeyUnavailable, match="not among"):
                client.get_resource(B)


@pytest.mark.parametrize(
    ("quote", "reason"), [({"mr_td": bytes(48)}, "mr_td"), ({"mr_config_id": bytes(48)}, "mr_config_id")]
)
def test_a_sibling_with_another_measurement_is_refused(
    site: Site, cache: Running, quote: dict[str, bytes], reason: str
) -> None:
    """Over HTTPS the cache appraises as the broker would, and names the failed check."""
    with remote(site, cache, **quote) as client, pytest.raises(KeyUnavailable, match=reason):
        client.get_resource(A)


def test_keys_are_nowhere_but_in_locked_memory(site: Site, cache: Running) -> None:
    """Not in a file that the cache has open or mapped, in none of the site's, and in no unlocked page."""
    with site.local("main") as local, remote(site, cache) as sibling:
        assert local.get_resource(A) == sibling.get_resource(A) == KEY
    process = Path(f"/proc/{cache.pid}")
    limits = (process / "limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)
    found = list(occurrences(process, KEY))
    assert found
    assert all("lo" in flags for flags in found), found
    mapped = {
        line.split(maxsplit=5)[5] for line in (process / "maps").read_text().splitlines() if "/" in line
    }
    opened = {str(link.resolve()) for link in (process / "fd").iterdir()}
    files = {Path(name) for name in mapped | opened} | set(site.folder.rglob("*"))
    for file in files:
        if file.is_file() and file.parts[1] not in ("proc", "dev", "sys"):
            assert KEY not in file.read_bytes(), file
    assert KEY.decode("latin-1") not in "".join(cache.lines)


def occurrences(process: Path, secret: bytes) -> Iterator[set[str]]:
    """The kernel's flags of every mapping of a process in which a secret is."""
    with (process / "mem").open("rb", buffering=0) as memory:
        where: tuple[int, int] | None = None
        for line in (process / "smaps").read_text().splitlines():
            if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) r", line):
                where = (int(found[1], 16), int(found[2], 16))
            elif re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                where = None
            elif line.startswith("VmFlags:") and where is not None:
                try:
                    memory.seek(where[0])
                    content = memory.read(where[1] - where[0])
                except (OSError, ValueError, OverflowError):
                    continue  # the kernel's own pages
                if secret in content:
                    yield set(line.split()[1:])


def test_a_revoked_key_is_dropped_at_the_next_renewal(site: Site) -> None:
    """Once the owner has deleted a key, the cache serves it no longer than until it asks again."""
    uri = "kbs:///models/dek/revoked"
    with site.admin() as admin:
        admin.put_resource(uri, KEY)
        with site.cache("revoking", uris=[uri, A], lease_s=1.0) as running:
            with site.local("revoking") as client:
                assert client.get_resource(uri) == KEY
            admin.delete_resource(uri)
            assert "revoked" in wait_until(KeyUnavailable, site, "revoking", uri).message
            assert running.wait_for("dropped")["resource"] == uri
            with site.local("revoking") as client:
                assert client.get_resource(A) == KEY


def test_changed_settings_get_no_key(site: Site) -> None:
    """An operator who lets one more user ask has a cache that the owner's broker does not know."""
    with site.cache("changed", accepted=False, uris=[A], allowed_uids=[0, 12345]) as running:
        failed = running.wait_for("listening")
        with site.local("changed") as client, pytest.raises(KeyUnavailable, match="mr_config_id"):
            client.get_resource(A)
    assert failed["socket"].endswith("changed.sock")


def test_certificate_of_the_owner(site: Site) -> None:
    """With ``cache.tls`` the certificate is one that only an attested cache can have the key of."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = make_certificate(key, "127.0.0.1", datetime.now(UTC)).public_bytes(Encoding.PEM)
    (site.folder / "owners.pem").write_bytes(certificate)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with site.admin() as admin:
        admin.put_resource("kbs:///cache/tls/site", certificate + private)
    flags = {"uris": [A], "tls": "kbs:///cache/tls/site", "port": free_port()}
    with site.cache("owned", **flags) as running:
        url = running.wait_listening()["url"]
        with BrokerClient(url, attester=site.tee(), ca=site.folder / "owners.pem") as client:
            assert client.get_resource(A) == KEY


def test_warm_serves_on_without_the_broker_and_cold_fails_soon() -> None:
    """The broker is killed: a warm cache goes on until grace is over, a cold one says why it cannot.

    When the broker is back, the cold one serves by itself.
    """
    with new_site() as site, site.broker() as broker:
        with site.admin() as admin:
            admin.put_resource(A, KEY)
        times = {"lease_s": 1.0, "grace_s": 4.0}
        with site.cache("warm", uris=[A], **times), site.cache("brief", uris=[A], lease_s=0.4, grace_s=0.4):
            with site.local("warm") as client:
                assert client.get_resource(A) == KEY
            broker.stop(signal.SIGKILL)
            killed = time.monotonic()
            with site.cache("cold", uris=[A], lease_s=30.0):
                begin = time.monotonic()
                with site.local("cold") as client, pytest.raises(TransportError) as caught:
                    client.get_resource(A)
                assert time.monotonic() - begin < COLD_S
                assert site.url in str(caught.value)
                assert "cannot be reached" in str(caught.value)
                while time.monotonic() < killed + 2.0:  # the lease of one second is over
                    with site.local("warm") as client:
                        assert client.get_resource(A) == KEY
                    time.sleep(0.1)
                assert "cannot be reached" in wait_until(TransportError, site, "brief", A).message
                with site.broker(), site.local("cold") as cold:
                    deadline = time.monotonic() + 10
                    while time.monotonic() < deadline:
                        try:
                            assert cold.get_resource(A) == KEY
                            break
                        except TransportError:
                            time.sleep(0.1)
                    else:
                        raise AssertionError("the cold cache did not recover")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uris": []}, "cache.uris is empty"),
        ({"socket": ""}, "nobody could ask"),
        ({"broker": ""}, "cache.broker is empty"),
        ({"socket": "/nonexistent/s"}, "cannot listen"),
        ({"policy": "/nonexistent/p"}, "cannot read /nonexistent/p"),
        ({"lease_s": 0.0}, "must be positive"),
        ({"reference_values": "", "port": 1}, "cache.reference_values is empty"),
    ],
)
def test_bad_settings_stop_the_start(site: Site, changes: dict[str, object], message: str) -> None:
    """A cache that could not do its work ends at once, on one line that says why."""
    running = Running("cache", site.cache_flags("bad", **{"uris": [A], **changes}))
    assert running.wait() == 2
    assert message in running.lines[-1], running.lines
