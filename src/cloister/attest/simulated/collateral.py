"""TCB info, QE identity and CRLs of a simulated platform, signed as Intel's own are."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attest.dcap.endorsements import DcapEndorsements
from cloister.attest.simulated.pki import Authority, PlatformTcb, make_crl

LIFETIME = timedelta(days=365)
TCB_EVALUATION_DATA_NUMBER = 21
TEE_TCB_SVN = bytes([3, 1, 2]) + bytes(13)
"""TDX module version 1 (identity ``TDX_01``) with SVN 3."""
QE_MR_SIGNER = hashlib.sha256(b"simulated quoting enclave: signer").digest()
QE_ATTRIBUTES = bytes.fromhex("1100000000000000e700000000000000")
Tee = Literal["TDX", "SGX"]
QE_IDS: dict[Tee, str] = {"TDX": "TD_QE", "SGX": "QE"}
QE_ISV_PROD_IDS: dict[Tee, int] = {"TDX": 2, "SGX": 1}
QE_ISV_SVN = 4
_TCB_DATE = "2026-02-11T00:00:00Z"
_OLD_TCB_DATE = "2023-08-09T00:00:00Z"
_ADVISORY = "INTEL-SA-00000"


@dataclass(frozen=True, slots=True)
class CollateralIssuer:
    """Everything that is needed to issue collateral for one simulated processor."""

    root: Authority
    platform_ca: Authority
    tcb_signing: Authority
    pck_serial: int
    tcb: PlatformTcb

    def issue(
        self, now: datetime, *, tee: Tee = "TDX", tcb_status: str = "UpToDate", revoke_pck: bool = False
    ) -> DcapEndorsements:
        """Collateral that holds for one year from ``now``.

        Args:
            tee: whose quotes it is for; TCB info and QE identity differ.
            tcb_status: what it says of this processor's TCB level.
            revoke_pck: whether the CRL lists this processor's certificate.
        """
        next_update = now + LIFETIME
        window = {"issueDate": _rfc3339(now), "nextUpdate": _rfc3339(next_update)}
        tcb_info = _compact(self._tcb_info(window, tcb_status, tee))
        qe_identity = _compact(self._qe_identity(window, tee))
        signer_chain = _pem(self.tcb_signing, self.root)
        revoked = (self.pck_serial,) if revoke_pck else ()
        return DcapEndorsements(
            pck_crl_issuer_chain=_pem(self.platform_ca, self.root),
            root_ca_crl=make_crl(self.root, now, next_update),
            pck_crl=make_crl(self.platform_ca, now, next_update, revoked=revoked),
            tcb_info_issuer_chain=signer_chain,
            tcb_info=tcb_info,
            tcb_info_signature=raw_signature(self.tcb_signing.key, tcb_info.encode()),
            qe_identity_issuer_chain=signer_chain,
            qe_identity=qe_identity,
            qe_identity_signature=raw_signature(self.tcb_signing.key, qe_identity.encode()),
        )

    def _tcb_info(self, window: dict[str, str], tcb_status: str, tee: Tee) -> dict[str, Any]:
        own = self._level(self.tcb.cpu_svn, tcb_status, _TCB_DATE, tee)
        higher_svn = bytes(min(svn + 1, 255) for svn in self.tcb.cpu_svn)
        higher = self._level(higher_svn, "UpToDate", _TCB_DATE, tee)
        levels = [own] if tcb_status == "UpToDate" else [higher, own]
        if tcb_status != "UpToDate":
            own["tcbDate"] = _OLD_TCB_DATE
            own["advisoryIDs"] = [_ADVISORY]
        return {
            "id": tee,
            "version": 3,
            **window,
            "fmspc": self.tcb.fmspc.hex().upper(),
            "pceId": self.tcb.pce_id.hex().upper(),
            "tcbType": 0,
            "tcbEvaluationDataNumber": TCB_EVALUATION_DATA_NUMBER,
            **(_tdx_module() if tee == "TDX" else {}),
            "tcbLevels": levels,
        }

    def _level(self, cpu_svn: bytes, status: str, date: str, tee: Tee) -> dict[str, Any]:
        tcb: dict[str, Any] = {
            "sgxtcbcomponents": [{"svn": svn} for svn in cpu_svn],
            "pcesvn": self.tcb.pce_svn,
        }
        if tee == "TDX":
            module = [TEE_TCB_SVN[0], 0, *TEE_TCB_SVN[2:]]
            tcb["tdxtcbcomponents"] = [{"svn": svn} for svn in module]
        return {"tcb": tcb, "tcbDate": date, "tcbStatus": status}

    @staticmethod
    def _qe_identity(window: dict[str, str], tee: Tee) -> dict[str, Any]:
        return {
            "id": QE_IDS[tee],
            "version": 2,
            **window,
            "tcbEvaluationDataNumber": TCB_EVALUATION_DATA_NUMBER,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11000000000000000000000000000000",
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": QE_MR_SIGNER.hex().upper(),
            "isvprodid": QE_ISV_PROD_IDS[tee],
            "tcbLevels": [{"tcb": {"isvsvn": QE_ISV_SVN}, "tcbDate": _TCB_DATE, "tcbStatus": "UpToDate"}],
        }


def _tdx_module() -> dict[str, Any]:
    module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
    level = {"tcb": {"isvsvn": TEE_TCB_SVN[0]}, "tcbDate": _TCB_DATE, "tcbStatus": "UpToDate"}
    return {
        "tdxModule": module,
        "tdxModuleIdentities": [{"id": "TDX_01", **module, "tcbLevels": [level]}],
    }


def raw_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """ECDSA with SHA-256 as r and s, 32 big-endian bytes each."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _rfc3339(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _compact(document: dict[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"))


def _pem(*chain: Authority) -> str:
    return "".join(link.certificate.public_bytes(Encoding.PEM).decode("ascii") for link in chain)
