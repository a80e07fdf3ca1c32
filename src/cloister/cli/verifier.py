"""``cloister verifier``: judge services for callers that cannot do so themselves, such as web pages."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.options import ReferenceFile, SimulatedRoot, trusted_roots
from cloister.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec


def verifier(
    key: Annotated[Path, typer.Option(help="P-256 private key (PEM); made if it is not there.")],
    reference_values: ReferenceFile = None,
    simulated_root: SimulatedRoot = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to listen; port 0 picks a free one.")
    ] = "127.0.0.1:8700",
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate chain (PEM).")] = None,
    certificate_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Web origin whose pages may ask; * for any.")
    ] = None,
    ttl: Annotated[float, typer.Option(min=1, max=86_400, help="Seconds for which a verdict holds.")] = 300.0,
) -> None:
    """Answer evidence of services with signed verdicts (EAR) under these reference values."""
    import json

    import uvicorn

    from cloister.attest.appraisal import ReferenceValues
    from cloister.serve.listen import bind
    from cloister.serve.log import configure_log
    from cloister.verifier.server import Verifier, create_verifier

    configure_log("warning")
    if reference_values is None:
        raise ConfigError("no reference values: nothing says which TEE is acceptable", hint="give -r FILE")
    if (certificate is None) != (certificate_key is None):
        raise ConfigError("--certificate and --certificate-key go together")
    judge = Verifier(
        reference_values=ReferenceValues.from_toml(reference_values),
        key=_load_key(key),
        roots=trusted_roots(simulated_root),
        ttl_s=ttl,
    )
    if certificate and certificate_key:
        _check_certificate(certificate, certificate_key)
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(f"--listen {listen[:80]} is not HOST:PORT")
    listener = bind(host.strip("[]"), int(port))
    listener.listen(128)
    scheme = "https" if certificate else "http"
    typer.echo(f"Cloister verifier: {scheme}://{host}:{listener.getsockname()[1]}")
    typer.echo(json.dumps(judge.jwk()))
    config = uvicorn.Config(
        create_verifier(judge, origins=allow_origin or ()),
        log_config=None,
        access_log=False,
        server_header=False,
        ssl_certfile=str(certificate) if certificate else None,
        ssl_keyfile=str(certificate_key) if certificate_key else None,
    )
    uvicorn.Server(config).run(sockets=[listener])


def _check_certificate(certificate: Path, key: Path) -> None:
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(f"cannot use {certificate} with {key}: {error}", hint="both are PEM") from error


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if not path.exists():
        made = ec.generate_private_key(ec.SECP256R1())
        pem = made.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(pem)
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from error
        return made
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"cannot read the key {path}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise ConfigError(f"{path} is not a P-256 key")
    return key
