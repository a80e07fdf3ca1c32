"""Is a DCAP quote genuine? The steps that SGX and TDX share.

dcap-qvl verifies signatures, chains, revocation and TCB level. This module surrounds it with what it leaves
open (found by experiment with 0.7.0):

========================================================= ==================================================
dcap-qvl accepts                                          closed here
========================================================= ==================================================
bytes after the quote, outer type other than 6            ``parse_quote``: every length is exact
TCB info signed by a PCK certificate                      ``open_tcb_signing_chain``
unknown versions of TCB info and QE identity              ``open_collateral``
CRLs from the future                                      ``check_validity``
a PCK CRL of another CA (finds no entry, or no CRL)       ``check_revocation``
another PCEID in TCB info than in the PCK certificate     step 6
non-zero bytes after the hash in the QE's report data     step 6
PKS and Key Locker in the TD's attributes                 reference values, off by default
========================================================= ==================================================

It refuses trust domains for attributes that are a matter of policy: debug, SEPT_VE_DISABLE clear, migration,
service TDs. Genuine ones exist in real clouds. For those, and only those, step 5 is done by ``_verify_here``
with the same strictness, from the signatures up; the reference values then decide. For every other refusal
``_verify_here`` only names the cause: what dcap-qvl refuses stays refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

import dcap_qvl  # type: ignore[import-untyped]
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attest.dcap.chain import PckChain, open_pck_chain
from cloister.attest.dcap.collateral import (
    Collateral,
    certificate_window,
    check_revocation,
    check_validity,
    open_collateral,
)
from cloister.attest.dcap.ecdsa import key_from_raw, key_of, verify_raw
from cloister.attest.dcap.endorsements import DcapEndorsements
from cloister.attest.dcap.quote import Quote, parse_quote
from cloister.attest.dcap.roots import intel_roots, is_intel_root
from cloister.attest.dcap.shortfall import describe_shortfall
from cloister.attest.dcap.tcb import TcbLevel, TdxModule, evaluate_tcb
from cloister.attest.model import Endorsements
from cloister.errors import BadSignature, EndorsementMismatch, MalformedInput, VerificationError

QE_AUTH_DATA_BYTES = 32


@dataclass(frozen=True, slots=True)
class VerifiedQuote:
    """A genuine quote, the platform that made it, and the platform's TCB level."""

    quote: Quote
    chain: PckChain
    level: TcbLevel
    collateral: Collateral

    @property
    def simulated(self) -> bool:
        """Whether the chain ends in another root than Intel's."""
        return not is_intel_root(self.chain.root)

    @property
    def shortfall(self) -> tuple[str, ...]:
        """What a platform that is not up to date lacks, in words; empty for one that is."""
        if self.level.status == "UpToDate":
            return ()
        return describe_shortfall(
            self.collateral.tcb_info,
            self.collateral.qe_identity,
            self.chain.extension,
            self.quote.qe_report,
            _module_of(self.quote),
        )


def verify_quote(
    raw: bytes,
    endorsements: Endorsements | None,
    now: datetime,
    roots: Sequence[x509.Certificate] | None,
    *,
    tee_type: int,
) -> VerifiedQuote:
    """Establish that a quote is genuine.

    1. The quote has its form, exactly.
    2. Its PCK chain ends in one of ``roots`` (Intel's pinned key, if None).
    3. The collateral is signed under the same root.
    4. Every date holds at ``now``; no certificate is revoked; the CRLs are of the CAs in use.
    5. dcap-qvl: QE report, attestation key, quote signature, QE identity, TCB level.
    6. What dcap-qvl leaves open: PCEID, QE report data.

    Raises:
        MalformedInput: the quote or the collateral does not have its form, or there is no collateral.
        VerificationError: a step fails; the subclass says which kind.
    """
    quote = parse_quote(raw)
    if quote.tee_type != tee_type:
        raise MalformedInput(f"quote is of TEE type {quote.tee_type:#x}, expected {tee_type:#x}")
    if not isinstance(endorsements, DcapEndorsements):
        raise MalformedInput(
            "a DCAP quote cannot be verified without its collateral",
            hint="give TCB info, QE identity and CRLs",
        )
    chain = open_pck_chain(quote.pck_chain, intel_roots() if roots is None else tuple(roots))
    collateral = open_collateral(endorsements, chain.root)
    check_validity(
        (*collateral.windows, certificate_window(chain.authority), certificate_window(chain.pck)), now
    )
    check_revocation(collateral, chain.pck, chain.authority)
    level = _evaluate(raw, quote, chain, collateral, now)
    _check_pce_id(collateral, chain)
    _check_qe_report_data(quote)
    return VerifiedQuote(quote, chain, level, collateral)


def _evaluate(raw: bytes, quote: Quote, chain: PckChain, collateral: Collateral, now: datetime) -> TcbLevel:
    try:
        report = dcap_qvl.verify_with_root_ca(
            raw, collateral.for_dcap_qvl, _der(chain.root), int(now.timestamp())
        )
    except ValueError as error:
        text = " ".join(str(error).removeprefix("Verification failed: ").split())
        level = _verify_here(quote, chain, collateral)  # raises with the cause, if it finds one
        if any(refusal in text for refusal in _POLICY_REFUSALS):
            return level
        raise VerificationError(f"quote refused: {text}") from error
    # dcap-qvl decides; its quick form does not say of which date the level is, so that comes from here.
    own = _level_here(quote, chain, collateral)
    return TcbLevel(report.status, own.date, tuple(report.advisory_ids))


@lru_cache(maxsize=16)
def _der(root: x509.Certificate) -> bytes:
    return root.public_bytes(Encoding.DER)


def _verify_here(quote: Quote, chain: PckChain, collateral: Collateral) -> TcbLevel:
    """Step 5 without dcap-qvl. Chains and collateral have been verified by the steps before it."""
    verify_raw(key_of(chain.pck), quote.qe_report_signature, quote.qe_report, "QE report")
    _check_qe_report_data(quote)
    attestation_key = key_from_raw(quote.attestation_key, "attestation key")
    verify_raw(attestation_key, quote.signature, quote.signed, "quote")
    return _level_here(quote, chain, collateral)


def _level_here(quote: Quote, chain: PckChain, collateral: Collateral) -> TcbLevel:
    return evaluate_tcb(
        collateral.tcb_info, collateral.qe_identity, chain.extension, quote.qe_report, _module_of(quote)
    )


def _module_of(quote: Quote) -> TdxModule | None:
    if quote.version == 3:
        return None
    body = quote.body
    return TdxModule(body[:16], body[584:600] or None, body[64:112], body[112:120])


def _check_pce_id(collateral: Collateral, chain: PckChain) -> None:
    found = str(collateral.tcb_info.get("pceId", "")).lower()
    expected = chain.extension.pce_id.hex()
    if found != expected:
        raise EndorsementMismatch(f"TCB info is of PCEID {found!r}, the PCK certificate of {expected!r}")


def _check_qe_report_data(quote: Quote) -> None:
    if len(quote.qe_auth_data) != QE_AUTH_DATA_BYTES:
        raise MalformedInput(
            f"quote: QE authentication data has {len(quote.qe_auth_data)} bytes,"
            f" expected {QE_AUTH_DATA_BYTES}"
        )
    digest = hashlib.sha256(quote.attestation_key + quote.qe_auth_data).digest()
    if quote.qe_report[320:] != digest.ljust(64, b"\x00"):
        raise BadSignature("QE report does not certify this attestation key")


_POLICY_REFUSALS = (
    "Debug mode is enabled",
    "TD profiling is enabled",
    "TD migration is enabled",
    "SERVTD_EXT is enabled",
    "SEPT_VE_DISABLE is not enabled",
    "Invalid MR service TD",
)


def render_time(moment: datetime) -> str:
    """An aware time as ISO 8601 in UTC."""
    return moment.astimezone(UTC).isoformat()
