"""Addresses of a real server: TLS from PEM files and a keystore, UNIX sockets, one port for all, CORS."""

from __future__ import annotations

import shutil
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    pkcs12,
)

from tests.processes.server import free_port, pack
from tests.serve.torchserve.launch import NOOP, TorchServe

OPEN = ("--disable-token-auth", "--enable-model-api")


def make_certificate(folder: Path) -> ssl.SSLContext:
    """A key pair as PEM files and as a PKCS #12 keystore; what a client trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(pem)
    (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    store = pkcs12.serialize_key_and_certificates(
        b"ts", key, certificate, None, BestAvailableEncryption(b"pw")
    )
    (folder / "keystore.p12").write_bytes(store)
    return ssl.create_default_context(cadata=certificate.public_bytes(Encoding.PEM).decode())


def make_store(folder: Path) -> None:
    """A model store with one model."""
    (folder / "store").mkdir(exist_ok=True)
    shutil.move(pack(folder, "noop", NOOP), folder / "store" / "noop.mar")


def test_https(tmp_path: Path) -> None:
    """An https address is served under the configured certificate, the others stay as they are."""
    trusted = make_certificate(tmp_path)
    make_store(tmp_path)
    port = free_port()
    properties = {
        "inference_address": f"https://127.0.0.1:{port}",
        "certificate_file": "cert.pem",
        "private_key_file": "key.pem",
        "load_models": "noop.mar",
        "default_workers_per_model": 1,
    }
    with TorchServe(tmp_path, properties, OPEN) as server:
        url = f"https://localhost:{port}/predictions/noop"
        assert httpx.post(url, content=b"x", verify=trusted, timeout=30).text == "OK"
        assert server.manage("GET", "/models").status_code == 200


def test_keystore_unix_socket_and_cors(tmp_path: Path) -> None:
    """A PKCS #12 keystore, a UNIX socket, and CORS headers with every answer of every port."""
    trusted = make_certificate(tmp_path)
    make_store(tmp_path)
    port, path = free_port(), tmp_path / "management.sock"
    properties = {
        "inference_address": f"https://127.0.0.1:{port}",
        "management_address": f"unix:{path}",
        "keystore": "keystore.p12",
        "keystore_pass": "pw",
        "load_models": "noop.mar",
        "default_workers_per_model": 1,
        "cors_allowed_origin": "https://yours.example",
        "cors_allowed_methods": "GET, POST",
        "cors_allowed_headers": "X-Custom-Header",
    }
    with TorchServe(tmp_path, properties, OPEN):
        url = f"https://localhost:{port}/predictions/noop"
        answer = httpx.post(url, content=b"x", verify=trusted, timeout=30)
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://localhost") as client:
            listed = client.get("/models")
            assert listed.json()["models"][0]["modelName"] == "noop"
        for shown in (answer, listed):
            assert shown.headers["access-control-allow-origin"] == "https://yours.example"
            assert shown.headers["access-control-allow-methods"] == "GET, POST"
            assert shown.headers["access-control-allow-headers"] == "X-Custom-Header"
    assert not path.exists()


def test_one_port_for_both_apis(tmp_path: Path) -> None:
    """Equal addresses put inference and management behind one port, each with its own token."""
    make_store(tmp_path)
    address = f"http://127.0.0.1:{free_port()}"
    properties = {
        "inference_address": address,
        "management_address": address,
        "load_models": "noop.mar",
        "default_workers_per_model": 1,
    }
    with TorchServe(tmp_path, properties) as server:
        tokens = server.tokens()

        def ask(method: str, path: str, kind: str) -> int:
            headers = {"authorization": f"Bearer {tokens[kind]['key']}"}
            return httpx.request(method, address + path, headers=headers, timeout=30).status_code

        assert ask("POST", "/predictions/noop", "inference") == 200
        assert ask("POST", "/predictions/noop", "management") == 400
        assert ask("GET", "/models/noop/1.0", "management") == 200
        assert ask("GET", "/models/noop/1.0", "inference") == 400
        assert ask("POST", "/models/noop/invoke", "inference") == 200
