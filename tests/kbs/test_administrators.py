"""Administration by client certificates, over real TLS on loopback, and everything that is not enough."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from cloister.attest.simulated import SimulatedPlatform
from cloister.cli.keys.access import administrator
from cloister.errors import CloisterError, ConfigError, KeyUnavailable, PolicyDenied, StaleEvidence
from cloister.kbs.admin import issue_admin_token
from cloister.kbs.administrators import Administrators, Credential, open_administrators, read_roles
from cloister.kbs.client import BrokerAdmin, BrokerClient
from cloister.kbs.owner_files import load_or_make_ed25519
from cloister.settings import KeysSettings
from tests.fakes.authority import DAY, Authority
from tests.kbs.broker_process import Run, RunningBroker, Tee
from tests.kbs.conftest import SECRET
from tests.kbs.test_server import last_entry, variant

URI = "kbs:///models/key/digits"
ROLES = """
[[administrator]]
role = "owner"
uri = "spiffe://example.org/release"

[[administrator]]
role = "auditor"
email = "auditor@example.org"

[[administrator]]
role = "admin"
subject = "CN=Alice,O=Example"
"""


SITE = Authority()
RELEASE = x509.UniformResourceIdentifier("spiffe://example.org/release")


@pytest.fixture(scope="module")
def guarded(platform: SimulatedPlatform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """A broker that takes certificates of one authority."""
    running = broker_with(platform, tmp_path_factory.mktemp("guarded"))
    yield running
    running.stop()


def broker_with(platform: SimulatedPlatform, folder: Path, **changes: Any) -> RunningBroker:
    """A broker with roles for certificates."""
    (folder / "ca.pem").write_bytes(SITE.pem)
    (folder / "roles.toml").write_text(ROLES)
    files = {"admin_ca": str(folder / "ca.pem"), "admin_roles": str(folder / "roles.toml")}
    return RunningBroker(folder, platform, **files, **changes)


def showing(broker: RunningBroker, pem: str) -> BrokerAdmin:
    """Administration by a certificate."""
    return BrokerAdmin(broker.url, token=pem, ca=broker.ca)


def test_a_certificate_with_a_role(guarded: RunningBroker) -> None:
    """It may do what the role may do, and the audit log names it as the owner's file does."""
    with showing(guarded, SITE.issue("ci", RELEASE)) as admin:
        assert admin.put_version(URI, SECRET) == 1
        assert last_entry(guarded)["subject"] == "role:owner certificate:uri:spiffe://example.org/release"
        assert [row["uri"] for row in admin.list_resources()] == [URI]
        with pytest.raises(KeyUnavailable, match="role may not do this"):
            admin.audit_entries()
    with guarded.client() as tee:
        assert tee.get_resource(URI) == SECRET


@pytest.mark.parametrize(
    ("pem", "role"),
    [
        (SITE.issue("x", x509.RFC822Name("auditor@example.org")), "auditor"),
        (SITE.issue("Alice"), "admin"),
        (SITE.issue("other", x509.DNSName("ci.example.org"), RELEASE), "owner"),
    ],
)
def test_names_of_every_kind(guarded: RunningBroker, pem: str, role: str) -> None:
    """Names in the certificate and its subject give the role that the file says."""
    paths = {"owner": "/kbs/v0/resource", "auditor": "/cloister/v0/audit", "admin": "/kbs/v0/resource-policy"}
    with client(guarded, pem) as http:
        granted = {name for name, path in paths.items() if variant_or_none(http.get(path)) != "AdminAuth"}
    assert granted == (set(paths) if role == "admin" else {role})


def test_by_fingerprint(platform: SimulatedPlatform, tmp_path: Path) -> None:
    """One certificate can be named by its digest; another one of the same name is not it."""
    pem, other = SITE.issue("pinned"), SITE.issue("pinned")
    digest = x509.load_pem_x509_certificate(pem.encode()).fingerprint(hashes.SHA256()).hex().upper()
    broker = broker_with(platform, tmp_path)
    (tmp_path / "roles.toml").write_text(f'[[administrator]]\nrole = "owner"\nfingerprint = "{digest}"\n')
    try:
        with showing(broker, pem) as admin:
            assert admin.list_resources() == []
        with showing(broker, other) as admin, pytest.raises(KeyUnavailable, match="has no role"):
            admin.list_resources()
    finally:
        broker.stop()


def test_no_certificate(guarded: RunningBroker) -> None:
    """Without one TLS goes on, because TEEs have none, but administration wants one or a token."""
    with guarded.http() as http:
        answer = http.get("/kbs/v0/resource")
    assert (answer.status_code, variant(answer)) == (401, "AdminAuth")
    assert "client certificate" in answer.json()["detail"]


@pytest.mark.parametrize(
    "pem",
    [
        Authority("Another authority").issue("Alice"),
        Authority().issue("Alice"),  # the right name, another key
        SITE.issue("Alice", begin=-3 * DAY, end=-2 * DAY),
        SITE.issue("Alice", begin=DAY, end=2 * DAY),
        SITE.issue("Alice", usage=ExtendedKeyUsageOID.SERVER_AUTH),
    ],
    ids=["another authority", "forged", "expired", "not yet valid", "a server's"],
)
def test_certificates_that_tls_refuses(guarded: RunningBroker, pem: str) -> None:
    """Of another authority, expired, not valid yet, for another use: no request is even read."""
    before = len(guarded.logs)
    with client(guarded, pem) as http, pytest.raises(httpx.HTTPError):
        http.get("/kbs/v0/resource")
    assert not [event for event in guarded.logs[before:] if "administrator" in str(event.get("event"))]


def test_a_certificate_without_a_role(guarded: RunningBroker) -> None:
    """A certificate of the right authority that the owner has given no role may do nothing."""
    with showing(guarded, SITE.issue("Mallory")) as admin:
        for act in (admin.list_resources, admin.audit_entries, admin.rotate_kek):
            with pytest.raises(KeyUnavailable, match="has no role"):
                act()


def test_a_certificate_is_no_attestation(guarded: RunningBroker) -> None:
    """An administrator's certificate gets no key out of the broker."""
    with client(guarded, SITE.issue("Alice")) as http:
        answer = http.get("/kbs/v0/resource/models/key/digits")
        assert variant(answer) == "TokenNotFound"
        run = Run(guarded, http)
        run.auth()
        assert run.attest(run.body(mr_td=bytes(48))).status_code == 401


def test_tokens_are_taken_beside_certificates(guarded: RunningBroker) -> None:
    """A request with a token is judged by the token: a bad one is not made good by a certificate."""
    with guarded.admin() as admin:
        assert isinstance(admin.list_resources(), list)
    with client(guarded, SITE.issue("Alice")) as http:
        assert http.get("/kbs/v0/resource").status_code == 200
        refused = http.get("/kbs/v0/resource", headers={"Authorization": "Bearer x.y.z"})
        assert variant(refused) == "AdminAuth"


def test_a_header_is_no_certificate(guarded: RunningBroker) -> None:
    """What a proxy would say of a client's certificate counts for nothing."""
    subject = {"X-SSL-Client-S-DN": "CN=Alice,O=Example", "X-Forwarded-Client-Cert": "Subject=CN=Alice"}
    with guarded.http() as http:
        assert variant(http.get("/kbs/v0/resource", headers=subject)) == "AdminAuth"


def test_a_role_is_taken_away_at_once(platform: SimulatedPlatform, tmp_path: Path) -> None:
    """Who is struck out of the file has no role on the next request; a broken file lets nobody in."""
    broker = broker_with(platform, tmp_path)
    try:
        with client(broker, SITE.issue("Alice")) as http:
            assert http.get("/kbs/v0/resource").status_code == 200
            (tmp_path / "roles.toml").write_text("")
            assert "no role" in http.get("/kbs/v0/resource").json()["detail"]
            (tmp_path / "roles.toml").write_text("[[administrator]")
            answer = http.get("/kbs/v0/resource")
            assert variant(answer) == "AdminAuth"
            assert "roles.toml" not in answer.text
            (tmp_path / "roles.toml").write_text(ROLES)
            assert http.get("/kbs/v0/resource").status_code == 200
    finally:
        broker.stop()


def test_certificates_only(platform: SimulatedPlatform, tmp_path: Path) -> None:
    """With tokens off even the broker's own token is refused, none is written, and TEEs are served."""
    broker = broker_with(platform, tmp_path, admin_tokens=False)
    try:
        assert not (broker.state / "admin.token").exists()
        key = load_or_make_ed25519(broker.state / "admin.key")
        token = issue_admin_token(key, datetime.now(UTC))
        with broker.admin(token) as admin, pytest.raises(KeyUnavailable, match="takes no admin tokens"):
            admin.list_resources()
        with showing(broker, SITE.issue("ci", RELEASE)) as admin:
            admin.put_resource(URI, SECRET)
        with BrokerClient(broker.url, attester=Tee(platform), ca=broker.ca) as tee:
            assert tee.get_resource(URI) == SECRET
    finally:
        broker.stop()


def test_a_connection_that_outlives_its_certificate(tmp_path: Path) -> None:
    """TLS looks at the time once; the broker looks again at each request."""
    (tmp_path / "roles.toml").write_text(ROLES)
    roles = read_roles(tmp_path / "roles.toml")
    administrators = Administrators(None, lambda: roles)
    der = x509.load_pem_x509_certificate(SITE.issue("Alice").encode()).public_bytes(Encoding.DER)
    shown, now = Credential(certificate=der), datetime.now(UTC)
    assert administrators.actor(shown, now, needs="audit").startswith("role:admin ")
    with pytest.raises(StaleEvidence, match="expired"):
        administrators.actor(shown, now + 2 * DAY, needs="audit")


@pytest.mark.parametrize("der", [b"", b"x", SITE.pem, b"\x30\x03\x02\x01\x01"])
def test_bytes_that_are_no_certificate(der: bytes, tmp_path: Path) -> None:
    """Nothing but a declared error comes of them."""
    (tmp_path / "roles.toml").write_text(ROLES)
    roles = read_roles(tmp_path / "roles.toml")
    with pytest.raises(CloisterError):
        Administrators(None, lambda: roles).actor(
            Credential(certificate=der), datetime.now(UTC), needs="audit"
        )


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("administrator = 3", "administrator"),
        ('[[administrator]]\nrole = "king"\ndns = "a"', "unknown role"),
        ('[[administrator]]\nrole = "owner"', "found 0"),
        ('[[administrator]]\nrole = "owner"\ndns = "a"\nuri = "b"', "found 2"),
        ('[[administrator]]\nrole = "owner"\nfingerprint = "ab"', "64 digits"),
        ('[[administrator]]\nrole = "owner"\nname = "a"', "name"),
        ("[[", "administrators"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, text: str, names: str) -> None:
    """A mistake in the owner's file stops the start, and says what it is."""
    (tmp_path / "roles.toml").write_text(text)
    with pytest.raises(ConfigError, match=names):
        read_roles(tmp_path / "roles.toml")


def test_settings_that_do_not_fit_together(tmp_path: Path) -> None:
    """Authorities without roles, roles without authorities, and a broker that nobody could administer."""
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    (tmp_path / "ca.pem").write_text("nothing")
    (tmp_path / "roles.toml").write_text(ROLES)
    ca, roles = str(tmp_path / "ca.pem"), str(tmp_path / "roles.toml")
    for settings, names in (
        (KeysSettings(admin_ca=ca), "belong together"),
        (KeysSettings(admin_roles=roles), "belong together"),
        (KeysSettings(admin_tokens=False), "nobody could administer"),
        (KeysSettings(admin_ca=ca, admin_roles=roles), "cannot read certificates"),
    ):
        with pytest.raises(ConfigError, match=names):
            open_administrators(settings, key)
    with pytest.raises(PolicyDenied, match=r"needs a bearer token$"):
        Administrators(key).actor(Credential(), datetime.now(UTC), needs="audit")


def test_the_command_line_shows_a_certificate(guarded: RunningBroker, tmp_path: Path) -> None:
    """A PEM in place of the token's file is shown to the broker."""
    (tmp_path / "alice.pem").write_text(SITE.issue("Alice"))
    with administrator(None, None, guarded.url, tmp_path / "alice.pem", guarded.ca) as admin:
        assert isinstance(admin.list_resources(), list)


def test_a_pem_without_its_key() -> None:
    """The client says what is wrong with the file, and does not ask for a password."""
    certificate = SITE.pem.decode()
    with pytest.raises(ConfigError, match="private key"):
        BrokerAdmin("https://127.0.0.1:1", token=certificate)


def client(broker: RunningBroker, pem: str) -> httpx.Client:
    """Plain HTTPS with a client certificate."""
    context = ssl.create_default_context(cafile=str(broker.ca))
    file = broker.folder / f"client-{abs(hash(pem))}.pem"
    file.write_text(pem)
    context.load_cert_chain(file)
    return httpx.Client(base_url=broker.url, verify=context, trust_env=False)


def variant_or_none(response: httpx.Response) -> str | None:
    """The error variant of a refusal."""
    return None if response.status_code == 200 else variant(response)
