"""A simulated SGX platform: SGX v3 quotes of a simulated Intel platform, which makes TDX quotes as well.

It lies in the same folder, under the same root and PCK certificate, as on real machines. One file more:

======================== ===== ===================================================================
file                     mode  content
======================== ===== ===================================================================
sgx-collateral.json      0644  endorsements for SGX quotes (``QuoteCollateralV3`` members)
======================== ===== ===================================================================
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from cloister.attest.dcap.endorsements import DcapEndorsements
from cloister.attest.simulated.platform import SimulatedPlatform
from cloister.errors import ConfigError, MalformedInput

MR_SIGNER = hashlib.sha256(b"simulated enclave: signer").digest()
CONFIG_ID_BYTES = 64
_COLLATERAL = "sgx-collateral.json"
_CPU_SVN = bytes([3, 3, 2, 2, 4, 1, 0, 5]) + bytes(8)
_INIT, _DEBUG, _MODE64BIT = 0x01, 0x02, 0x04
_XFRM = 0xE7


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveReport:
    """What a simulated enclave says of itself."""

    report_data: bytes
    mr_enclave: bytes
    mr_signer: bytes = MR_SIGNER
    isv_prod_id: int = 0
    isv_svn: int = 0
    config_id: bytes = b""
    """At most 64 bytes, zero-padded."""
    debug: bool = False

    def to_bytes(self) -> bytes:
        """The 384 bytes of a report body.

        Raises:
            MalformedInput: a field of the wrong length.
        Source: Intel 64 SDM volume 3D, table 40-29 (REPORT structure).
        """
        if len(self.mr_enclave) != 32 or len(self.mr_signer) != 32:
            raise MalformedInput("mr_enclave and mr_signer have 32 bytes")
        if len(self.report_data) != 64 or len(self.config_id) > CONFIG_ID_BYTES:
            raise MalformedInput("report_data has 64 bytes, and config_id at most 64")
        if not (0 <= self.isv_prod_id <= 0xFFFF and 0 <= self.isv_svn <= 0xFFFF):
            raise MalformedInput("isv_prod_id and isv_svn have two bytes")
        flags = _INIT | _MODE64BIT | (_DEBUG if self.debug else 0)
        return struct.pack(
            "<16s4s28sQQ32s32s32s32s64sHH60s64s",
            _CPU_SVN,
            bytes(4),  # MISCSELECT
            bytes(28),
            flags,
            _XFRM,
            self.mr_enclave,
            bytes(32),
            self.mr_signer,
            bytes(32),
            self.config_id,
            self.isv_prod_id,
            self.isv_svn,
            bytes(60),
            self.report_data,
        )


class SimulatedSgxPlatform:
    """A software SGX platform; see the package's docstring for what it is not.

    Args:
        platform: the simulated Intel platform whose keys it uses.
        stored: its collateral for SGX; None: it is issued when asked for.
    """

    def __init__(self, platform: SimulatedPlatform, stored: DcapEndorsements | None = None) -> None:
        self._platform = platform
        self._stored = stored
        self._signer = platform.quote_signer("SGX")

    @classmethod
    def create(
        cls, folder: Path, now: datetime, *, tcb_status: str = "UpToDate", revoke_pck: bool = False
    ) -> SimulatedSgxPlatform:
        """Make a new platform and save it in ``folder``; it can be used for TDX too.

        Args:
            now: aware UTC time; certificates hold ten years from it, collateral one year.
            tcb_status: what the collateral says of this platform, for tests: ``OutOfDate`` and so on.
            revoke_pck: whether the platform's certificate is on the CRL, for tests.
        Raises:
            ConfigError: the folder holds a platform already, or cannot be written.
        """
        platform = SimulatedPlatform.create(folder, now, tcb_status=tcb_status, revoke_pck=revoke_pck)
        stored = platform.issuer.issue(
            now.replace(microsecond=0), tee="SGX", tcb_status=tcb_status, revoke_pck=revoke_pck
        )
        try:
            (folder / _COLLATERAL).write_text(json.dumps(stored.to_mapping(), indent=1))
        except OSError as error:
            raise ConfigError(f"cannot write simulated platform {folder}: {error.strerror}") from error
        return cls(platform, stored)

    @classmethod
    def load(cls, folder: Path) -> SimulatedSgxPlatform:
        """The platform in ``folder``, made by ``create`` here or of ``SimulatedPlatform``.

        Raises:
            ConfigError: no platform there, or its files are damaged.
        """
        platform = SimulatedPlatform.load(folder)
        try:
            text = (folder / _COLLATERAL).read_bytes()
        except FileNotFoundError:
            return cls(platform)
        except OSError as error:
            raise ConfigError(f"cannot read simulated platform {folder}: {error.strerror}") from error
        try:
            return cls(platform, DcapEndorsements.from_mapping(json.loads(text)))
        except (ValueError, MalformedInput) as error:
            raise ConfigError(f"simulated platform {folder} is damaged: {_COLLATERAL}") from error

    @property
    def root(self) -> x509.Certificate:
        """The certificate that a relying party must be given to accept this platform."""
        return self._platform.root

    def endorsements(
        self, now: datetime, *, tcb_status: str | None = None, revoke_pck: bool = False
    ) -> DcapEndorsements:
        """Collateral for SGX quotes at ``now``; as ``SimulatedPlatform.endorsements``."""
        if (
            tcb_status is None
            and not revoke_pck
            and self._stored is not None
            and self._stored.is_current(now)
        ):
            return self._stored
        return self._platform.issuer.issue(
            now.replace(microsecond=0), tee="SGX", tcb_status=tcb_status or "UpToDate", revoke_pck=revoke_pck
        )

    def quote(
        self,
        report_data: bytes,
        *,
        mr_enclave: bytes,
        mr_signer: bytes = MR_SIGNER,
        isv_prod_id: int = 0,
        isv_svn: int = 0,
        config_id: bytes = b"",
        debug: bool = False,
    ) -> bytes:
        """An SGX v3 quote over 64 bytes of ``report_data``.

        Raises:
            MalformedInput: a value of the wrong length.
        """
        report = EnclaveReport(
            report_data=report_data,
            mr_enclave=mr_enclave,
            mr_signer=mr_signer,
            isv_prod_id=isv_prod_id,
            isv_svn=isv_svn,
            config_id=config_id,
            debug=debug,
        )
        return self._signer.sign(report)
