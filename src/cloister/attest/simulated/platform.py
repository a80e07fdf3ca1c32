"""A simulated TDX platform in a folder.

==================== ===== =====================================================================
file                 mode  content
==================== ===== =====================================================================
root.pem             0644  root certificate: what a relying party must choose to trust
collateral.json      0644  endorsements (``QuoteCollateralV3`` members)
pck-chain.pem        0644  PCK certificate, its CA, the root
tcb-chain.pem        0644  TCB signing certificate, the root
root.key             0600  private keys (PKCS #8 PEM, not encrypted): root CA, ...
platform-ca.key      0600  PCK Platform CA
tcb-signing.key      0600  TCB signing
pck.key              0600  PCK
attestation.key      0600  the quoting enclave's attestation key
==================== ===== =====================================================================
"""

from __future__ import annotations

import json
import os
import secrets
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from cloister.attest.dcap.endorsements import DcapEndorsements
from cloister.attest.dcap.pck import parse_pck_extension
from cloister.attest.simulated.collateral import CollateralIssuer, Tee
from cloister.attest.simulated.pki import (
    Authority,
    PlatformTcb,
    make_pck,
    make_platform_ca,
    make_root,
    make_tcb_signing,
    new_key,
)
from cloister.attest.simulated.quote import ZERO_REGISTER, QuoteSigner, TdReport
from cloister.errors import ConfigError, MalformedInput

_CPU_SVN = bytes([3, 3, 2, 2, 4, 1, 0, 5]) + bytes(8)
_PCE_SVN = 13
_FMSPC = bytes.fromhex("90c06f000000")


class SimulatedPlatform:
    """A software TDX platform; see the package's docstring for what it is not."""

    def __init__(
        self,
        root: Authority,
        platform_ca: Authority,
        tcb_signing: Authority,
        pck: Authority,
        attestation_key: ec.EllipticCurvePrivateKey,
        stored: DcapEndorsements,
    ) -> None:
        self._root, self._platform_ca, self._tcb_signing, self._pck = root, platform_ca, tcb_signing, pck
        self._attestation_key = attestation_key
        self._stored = stored
        self._signer = self.quote_signer("TDX")

    @classmethod
    def create(
        cls, folder: Path, now: datetime, *, tcb_status: str = "UpToDate", revoke_pck: bool = False
    ) -> SimulatedPlatform:
        """Make a new platform and save it in ``folder``.

        Args:
            now: aware UTC time; certificates hold ten years from it, collateral one year.
            tcb_status: what the collateral says of this platform, for tests: ``OutOfDate`` and so on.
            revoke_pck: whether the platform's certificate is on the CRL, for tests.
        Raises:
            ConfigError: the folder holds a platform already, or cannot be written.
        """
        now = now.replace(microsecond=0)
        if (folder / "root.pem").exists():
            raise ConfigError(f"{folder} already holds a simulated platform", hint="remove it or use another")
        root = make_root(now)
        platform_ca = make_platform_ca(root, now)
        tcb_signing = make_tcb_signing(root, now)
        tcb = PlatformTcb(
            ppid=secrets.token_bytes(16),
            cpu_svn=_CPU_SVN,
            pce_svn=_PCE_SVN,
            pce_id=bytes(2),
            fmspc=_FMSPC,
        )
        pck = make_pck(platform_ca, tcb, now)
        issuer = CollateralIssuer(root, platform_ca, tcb_signing, pck.certificate.serial_number, tcb)
        stored = issuer.issue(now, tcb_status=tcb_status, revoke_pck=revoke_pck)
        platform = cls(root, platform_ca, tcb_signing, pck, new_key(), stored)
        try:
            platform._save(folder)
        except OSError as error:
            raise ConfigError(f"cannot write simulated platform {folder}: {error.strerror}") from error
        return platform

    @classmethod
    def load(cls, folder: Path) -> SimulatedPlatform:
        """The platform that ``create`` saved in ``folder``.

        Raises:
            ConfigError: no platform there, or its files are damaged.
        """
        try:
            pck_chain = x509.load_pem_x509_certificates((folder / "pck-chain.pem").read_bytes())
            tcb_chain = x509.load_pem_x509_certificates((folder / "tcb-chain.pem").read_bytes())
            stored = DcapEndorsements.from_mapping(json.loads((folder / "collateral.json").read_bytes()))
            pck, platform_ca, root = pck_chain
            return cls(
                Authority(root, _load_key(folder / "root.key")),
                Authority(platform_ca, _load_key(folder / "platform-ca.key")),
                Authority(tcb_chain[0], _load_key(folder / "tcb-signing.key")),
                Authority(pck, _load_key(folder / "pck.key")),
                _load_key(folder / "attestation.key"),
                stored,
            )
        except FileNotFoundError as error:
            raise ConfigError(
                f"no simulated platform in {folder}: {Path(error.filename).name} is missing",
                hint="make one with `cloister simulate init`",
            ) from error
        except OSError as error:
            raise ConfigError(f"cannot read simulated platform {folder}: {error.strerror}") from error
        except (ValueError, TypeError, MalformedInput) as error:
            raise ConfigError(f"simulated platform {folder} is damaged: {type(error).__name__}") from error

    @property
    def root(self) -> x509.Certificate:
        """The certificate that a relying party must be given to accept this platform."""
        return self._root.certificate

    def endorsements(
        self, now: datetime, *, tcb_status: str | None = None, revoke_pck: bool = False
    ) -> DcapEndorsements:
        """Collateral for this platform at ``now``.

        The stored collateral while it holds; new collateral, as a provisioning service would issue it, once
        that has expired or where a variant (``tcb_status``, ``revoke_pck``) is asked for.
        """
        if tcb_status is None and not revoke_pck and self._stored.is_current(now):
            return self._stored
        return self.issuer.issue(
            now.replace(microsecond=0), tcb_status=tcb_status or "UpToDate", revoke_pck=revoke_pck
        )

    def quote_signer(self, tee: Tee) -> QuoteSigner:
        """The quoting enclave of this platform for quotes of ``tee``."""
        chain = (self._pck.certificate, self._platform_ca.certificate, self._root.certificate)
        pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
        return QuoteSigner(self._attestation_key, self._pck.key, pem, tee=tee)

    @property
    def issuer(self) -> CollateralIssuer:
        """The simulated provisioning service of this platform."""
        serial = self._pck.certificate.serial_number
        tcb = _tcb_of(self._pck.certificate)
        return CollateralIssuer(self._root, self._platform_ca, self._tcb_signing, serial, tcb)

    def quote(
        self,
        report_data: bytes,
        *,
        mr_td: bytes,
        mr_config_id: bytes = ZERO_REGISTER,
        mr_owner: bytes = ZERO_REGISTER,
        mr_owner_config: bytes = ZERO_REGISTER,
        rtmrs: tuple[bytes, ...] = (ZERO_REGISTER,) * 4,
        debug: bool = False,
        sept_ve_disable: bool = True,
        more_attributes: int = 0,
    ) -> bytes:
        """A TDX v4 quote over 64 bytes of ``report_data``; every register has 48 bytes.

        Args:
            more_attributes: further bits of TD_ATTRIBUTES to set.

        Raises:
            MalformedInput: a value of the wrong length.
        """
        report = TdReport(
            report_data=report_data,
            mr_td=mr_td,
            mr_config_id=mr_config_id,
            mr_owner=mr_owner,
            mr_owner_config=mr_owner_config,
            rtmrs=rtmrs,
            debug=debug,
            sept_ve_disable=sept_ve_disable,
            more_attributes=more_attributes,
        )
        return self._signer.sign(report)

    def _save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        authorities = {
            "root.key": self._root,
            "platform-ca.key": self._platform_ca,
            "tcb-signing.key": self._tcb_signing,
            "pck.key": self._pck,
        }
        for name, authority in authorities.items():
            _write(folder / name, _private_pem(authority.key), mode=0o600)
        _write(folder / "attestation.key", _private_pem(self._attestation_key), mode=0o600)
        root = self._root.certificate.public_bytes(Encoding.PEM)
        platform_ca = self._platform_ca.certificate.public_bytes(Encoding.PEM)
        pck = self._pck.certificate.public_bytes(Encoding.PEM)
        tcb_signing = self._tcb_signing.certificate.public_bytes(Encoding.PEM)
        _write(folder / "pck-chain.pem", pck + platform_ca + root)
        _write(folder / "tcb-chain.pem", tcb_signing + root)
        _write(folder / "collateral.json", json.dumps(self._stored.to_mapping(), indent=1).encode())
        _write(folder / "root.pem", root)


def _tcb_of(pck: x509.Certificate) -> PlatformTcb:
    extension = parse_pck_extension(pck)
    return PlatformTcb(
        ppid=extension.ppid,
        cpu_svn=extension.cpu_svn,
        pce_svn=extension.pce_svn,
        pce_id=extension.pce_id,
        fmspc=extension.fmspc,
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("not an elliptic-curve key")
    return key


def _write(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
