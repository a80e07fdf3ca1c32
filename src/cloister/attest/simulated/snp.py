"""A simulated SEV-SNP platform in a folder.

==================== ===== =====================================================================
file                 mode  content
==================== ===== =====================================================================
snp-root.pem         0644  root certificate (ARK): what a relying party must choose to trust
snp-endorsements.json 0644 ``SnpEndorsements`` members: VCEK or VLEK, its authority, root, CRL
snp-ark.key          0600  private keys (PKCS #8 PEM, not encrypted): root
snp-authority.key    0600  the authority (ASK or ASVK)
snp-key.key          0600  the endorsement key (VCEK or VLEK)
==================== ===== =====================================================================
"""

from __future__ import annotations

import json
import os
import secrets
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from cloister.attest.simulated.snp_pki import (
    SimulatedChip,
    SnpAuthority,
    make_ark,
    make_ark_crl,
    make_authority,
    make_endorsement,
    new_rsa_key,
)
from cloister.attest.simulated.snp_report import DEFAULT_POLICY, GuestReport
from cloister.attest.snp.certificate import load_certificate
from cloister.attest.snp.endorsements import SnpEndorsements
from cloister.attest.snp.extensions import KeyExtensions, parse_extensions
from cloister.attest.snp.table import render_table
from cloister.attest.snp.tcb import PRODUCTS, encode_tcb
from cloister.errors import ConfigError, MalformedInput

DEFAULT_TCB = {"fmc": 0, "bootloader": 10, "tee": 0, "snp": 27, "microcode": 27}
_FILES = ("snp-root.pem", "snp-endorsements.json", "snp-ark.key", "snp-authority.key", "snp-key.key")


class SimulatedSnpPlatform:
    """A software SEV-SNP platform; see the package's docstring for what it is not."""

    def __init__(
        self,
        ark: SnpAuthority,
        authority: SnpAuthority,
        key: ec.EllipticCurvePrivateKey,
        stored: SnpEndorsements,
    ) -> None:
        self._ark, self._authority, self._key, self._stored = ark, authority, key, stored
        self._extensions = _extensions_of(stored)

    @classmethod
    def create(
        cls,
        folder: Path,
        now: datetime,
        *,
        product: str = "Genoa",
        kind: str = "vcek",
        tcb: dict[str, int] | None = None,
    ) -> SimulatedSnpPlatform:
        """Make a new platform and save it in ``folder``; takes a few seconds, for its RSA keys.

        Args:
            now: aware UTC time; the root holds 25 years from it, the VCEK seven, the CRL one.
            product: Milan, Genoa or Turin.
            kind: ``vcek`` or ``vlek``: the key that signs reports.
            tcb: components by name, as ``SnpClaims`` has them.
        Raises:
            ConfigError: the folder holds a platform already, cannot be written, or an unknown product.
        """
        if (folder / _FILES[0]).exists():
            raise ConfigError(f"{folder} already holds a simulated platform", hint="remove it or use another")
        if product not in PRODUCTS or kind not in ("vcek", "vlek"):
            raise ConfigError(f"no simulated {product!r} with {kind!r}: {', '.join(PRODUCTS)}; vcek, vlek")
        now = now.replace(microsecond=0)
        ark = make_ark(product, new_rsa_key(), now)
        authority = make_authority(ark, product, kind, new_rsa_key(), now)
        key = ec.generate_private_key(ec.SECP384R1())
        chip = SimulatedChip(
            product=product,
            kind=kind,
            tcb=encode_tcb(tcb or DEFAULT_TCB, product),
            hwid=secrets.token_bytes(8 if product == "Turin" else 64),
        )
        certificate = make_endorsement(authority, chip, key.public_key(), now)
        stored = _endorsements(ark, authority, certificate, kind, make_ark_crl(ark, now))
        platform = cls(ark, authority, key, stored)
        try:
            platform._save(folder)
        except OSError as error:
            raise ConfigError(f"cannot write simulated platform {folder}: {error.strerror}") from error
        return platform

    @classmethod
    def load(cls, folder: Path) -> SimulatedSnpPlatform:
        """The platform that ``create`` saved in ``folder``.

        Raises:
            ConfigError: no platform there, or its files are damaged.
        """
        try:
            root = x509.load_pem_x509_certificate((folder / "snp-root.pem").read_bytes())
            stored = SnpEndorsements.from_mapping(json.loads((folder / "snp-endorsements.json").read_bytes()))
            authority = x509.load_der_x509_certificate(stored.ask or stored.asvk or b"")
            return cls(
                SnpAuthority(root, _load_key(folder / "snp-ark.key", rsa.RSAPrivateKey)),
                SnpAuthority(authority, _load_key(folder / "snp-authority.key", rsa.RSAPrivateKey)),
                _load_key(folder / "snp-key.key", ec.EllipticCurvePrivateKey),
                stored,
            )
        except FileNotFoundError as error:
            raise ConfigError(
                f"no simulated SEV-SNP platform in {folder}: {Path(error.filename).name} is missing"
            ) from error
        except OSError as error:
            raise ConfigError(f"cannot read simulated platform {folder}: {error.strerror}") from error
        except (ValueError, TypeError, MalformedInput) as error:
            raise ConfigError(f"simulated platform {folder} is damaged: {type(error).__name__}") from error

    @property
    def root(self) -> x509.Certificate:
        """The certificate that a relying party must be given to accept this platform."""
        return self._ark.certificate

    @property
    def extensions(self) -> KeyExtensions:
        """What the endorsement key's certificate says of the processor."""
        return self._extensions

    def endorsements(self, now: datetime, *, revoke: bool = False) -> SnpEndorsements:
        """Endorsements at ``now``, with a new revocation list.

        Args:
            revoke: whether the authority is on the list, for tests.
        """
        revoked = (self._authority.certificate.serial_number,) if revoke else ()
        crl = make_ark_crl(self._ark, now.replace(microsecond=0), revoked=revoked)
        certificate = x509.load_der_x509_certificate(self._stored.vcek or self._stored.vlek or b"")
        return _endorsements(self._ark, self._authority, certificate, self._extensions.kind, crl)

    def certificate_table(self) -> bytes:
        """What the host hands out with a report: append it for evidence that brings its endorsements."""
        stored = self._stored
        kinds = {
            "vcek": stored.vcek,
            "vlek": stored.vlek,
            "ask": stored.ask or stored.asvk,
            "ark": stored.ark,
        }
        return render_table({kind: der for kind, der in kinds.items() if der is not None})

    def quote(
        self,
        report_data: bytes,
        *,
        measurement: bytes,
        host_data: bytes = bytes(32),
        debug: bool = False,
        vmpl: int = 0,
        policy: int = DEFAULT_POLICY,
        version: int = 5,
        **more: Any,
    ) -> bytes:
        """A report over 64 bytes of ``report_data``.

        Args:
            more: further fields of ``GuestReport``.
        Raises:
            MalformedInput: a field of the wrong length.
        """
        report = GuestReport(
            report_data=report_data,
            measurement=measurement,
            host_data=host_data,
            debug=debug,
            vmpl=vmpl,
            policy=policy,
            version=version,
            **more,
        )
        own = self._extensions
        return report.sign(self._key, product=own.product, kind=own.kind, tcb=own.tcb, chip_id=own.hwid)

    def _save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "snp-ark.key", _private_pem(self._ark.key), mode=0o600)
        _write(folder / "snp-authority.key", _private_pem(self._authority.key), mode=0o600)
        _write(folder / "snp-key.key", _private_pem(self._key), mode=0o600)
        document = json.dumps(self._stored.to_mapping(), indent=1)
        _write(folder / "snp-endorsements.json", document.encode())
        _write(folder / "snp-root.pem", self.root.public_bytes(Encoding.PEM))


def _endorsements(
    ark: SnpAuthority, authority: SnpAuthority, certificate: x509.Certificate, kind: str, crl: bytes
) -> SnpEndorsements:
    names = ("vcek", "ask") if kind == "vcek" else ("vlek", "asvk")
    members = {
        names[0]: certificate.public_bytes(Encoding.DER),
        names[1]: authority.certificate.public_bytes(Encoding.DER),
    }
    return SnpEndorsements(ark=ark.certificate.public_bytes(Encoding.DER), crl=crl, **members)


def _extensions_of(stored: SnpEndorsements) -> KeyExtensions:
    return parse_extensions(
        load_certificate(stored.vcek or stored.vlek or b"", "endorsement key certificate")
    )


def _private_pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _load_key(path: Path, kind: type[Any]) -> Any:
    key = load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, kind):
        raise TypeError("another kind of key")
    return key


def _write(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
