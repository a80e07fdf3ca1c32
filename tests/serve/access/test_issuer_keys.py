"""An issuer's keys: from a file too, of the right kind only, bounded in number and size, over its own TLS."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey, OKPKey, RSAKey

from cloister.errors import BadSignature, CloisterError, ConfigError, MalformedInput, TransportError
from cloister.serve.access.issuer_keys import MAX_DOCUMENT_BYTES, IssuerKeys, fetch_document
from cloister.serve.access.issuers import ALGORITHMS, Issuer
from tests.fakes.authority import Authority
from tests.fakes.issuer import EC, ED, RSA, LocalIssuer


def filed(path: Path, *keys: Any) -> IssuerKeys:
    """Keys of a file."""
    path.write_text(json.dumps({"keys": [key.as_dict(private=False) for key in keys]}))
    return IssuerKeys(Issuer(url="https://x", audience="a", jwks_file=str(path)))


def test_keys_of_a_file(tmp_path: Path) -> None:
    """They are read again when the file changes; a broken one leaves the former keys."""
    path = tmp_path / "keys.json"
    keys = filed(path, EC)
    assert keys.refresh()
    assert not keys.refresh()
    assert [key["kid"] for key in keys.public] == ["ec"]
    assert keys.find("ec", "ES256").kid == "ec"
    path.write_text("{")
    with pytest.raises(MalformedInput):
        keys.refresh()
    assert not keys.refresh()
    assert keys.find("ec", "ES256", may_ask=False).kid == "ec"
    path.write_text(json.dumps({"keys": [RSA.as_dict(private=False)]}))
    assert keys.refresh()
    with pytest.raises(BadSignature):
        keys.find("ec", "ES256")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """Without any keys nothing can be said of a token."""
    keys = IssuerKeys(Issuer(url="https://x", audience="a", jwks_file=str(tmp_path / "none")))
    with pytest.raises(TransportError):
        keys.find("ec", "ES256", may_ask=False)


def test_a_key_fits_one_kind_of_algorithm(tmp_path: Path) -> None:
    """Curve, type and declared use decide what a key may have signed; two that fit are none."""
    p384 = ECKey.generate_key("P-384", {"kid": "p384"})
    ed448 = OKPKey.generate_key("Ed448", {"kid": "ed448"})
    x25519 = OKPKey.generate_key("X25519", {"kid": "x25519"})
    keys = filed(tmp_path / "keys.json", EC, RSA, ED, p384, ed448, x25519)
    keys.refresh()
    fits = {("ec", "ES256"), ("p384", "ES384"), ("ed", "EdDSA"), ("ed", "Ed25519")}
    fits |= {("rsa", f"{kind}{size}") for kind in ("RS", "PS") for size in (256, 384, 512)}
    for kid in ("ec", "rsa", "ed", "p384", "ed448", "x25519"):
        for algorithm in ALGORITHMS:
            if (kid, algorithm) in fits:
                assert keys.find(kid, algorithm).kid == kid
            else:
                with pytest.raises(BadSignature):
                    keys.find(kid, algorithm)
    assert keys.find(None, "ES256").kid == "ec"
    twins = filed(tmp_path / "twins.json", EC, ECKey.generate_key("P-256", {"kid": "other"}))
    twins.refresh()
    with pytest.raises(BadSignature):
        twins.find(None, "ES256")


@pytest.mark.parametrize(
    "other",
    [
        {"kty": "EC", "crv": "BP-256", "x": "AA", "y": "AA", "kid": "new"},
        {"kty": "OKP", "crv": "Ed999", "x": "AAAA", "kid": "new"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "new"},
        {"kty": "RSA", "kid": "new"},
        {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AA", "kid": "new"},
    ],
)
def test_a_key_that_is_not_known_here(tmp_path: Path, other: dict[str, str]) -> None:
    """It is left out, and those beside it are good; a set of nothing else is refused."""
    keys = filed(tmp_path / "keys.json", EC)
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [other, EC.as_dict(private=False)]}))
    keys.refresh()
    assert keys.find("ec", "ES256").kid == "ec"
    with pytest.raises(BadSignature):
        keys.find("new", "ES256")
    if other["kty"] != "AKP":
        (tmp_path / "keys.json").write_text(json.dumps({"keys": [other]}))
        with pytest.raises(MalformedInput, match="can be read"):
            keys.refresh()


def test_weak_and_too_many_keys(tmp_path: Path) -> None:
    """RSA below 2048 bits and endless sets are refused."""
    with pytest.raises(MalformedInput, match="2048"):
        filed(tmp_path / "a", RSAKey.generate_key(1024)).refresh()
    with pytest.raises(MalformedInput, match="more than"):
        filed(tmp_path / "b", *[EC] * 101).refresh()
    (tmp_path / "c").write_bytes(b" " * (MAX_DOCUMENT_BYTES + 1))
    with pytest.raises(MalformedInput):
        IssuerKeys(Issuer(url="https://x", audience="a", jwks_file=str(tmp_path / "c"))).refresh()


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists).map(
        lambda value: json.dumps({"keys": value}).encode()
    )
)
def test_garbage(raw: bytes) -> None:
    """Whatever an issuer sends is keys or a declared error."""
    keys = IssuerKeys(Issuer(url="https://x", audience="a", jwks_url="https://x/k"), fetch=lambda _: raw)
    try:
        keys.refresh()
    except MalformedInput:
        return
    with pytest.raises(CloisterError):
        keys.find("ec", "ES256")


@pytest.fixture
def over_tls(tmp_path: Path) -> Iterator[LocalIssuer]:
    """An issuer under a private authority, which is ``authority.pem``."""
    site, issuer = Authority(), LocalIssuer()
    (tmp_path / "authority.pem").write_bytes(site.pem)
    from ipaddress import ip_address

    from cryptography import x509

    names = (x509.IPAddress(ip_address("127.0.0.1")),)
    (tmp_path / "server.pem").write_text(
        site.issue("issuer", *names, usage=x509.ExtendedKeyUsageOID.SERVER_AUTH)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    issuer.server.socket = context.wrap_socket(issuer.server.socket, server_side=True)
    issuer.url = issuer.url.replace("http:", "https:")
    issuer.discovery = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"}
    yield issuer
    issuer.close()


def test_an_authority_of_its_own(over_tls: LocalIssuer, tmp_path: Path) -> None:
    """An issuer under a private authority is believed with that authority only."""
    named = Issuer(url=over_tls.url, audience="a", ca=str(tmp_path / "authority.pem"))
    assert IssuerKeys(named).refresh()
    with pytest.raises(TransportError):
        IssuerKeys(Issuer(url=over_tls.url, audience="a")).refresh()
    for text in (b"none", "\u00e9".encode()):
        with pytest.raises(ConfigError):
            fetch_document(over_tls.url, text)
    with pytest.raises(ConfigError, match="cannot read"):
        IssuerKeys(Issuer(url=over_tls.url, audience="a", ca=str(tmp_path / "none")))


def test_authorities_are_read_once(over_tls: LocalIssuer, tmp_path: Path) -> None:
    """Evidence speaks of them: whoever exchanges the file later names nobody else the issuer."""
    path = tmp_path / "authority.pem"
    keys = IssuerKeys(Issuer(url=over_tls.url, audience="a", ca=str(path)))
    path.write_bytes(Authority().pem)
    assert keys.refresh()
