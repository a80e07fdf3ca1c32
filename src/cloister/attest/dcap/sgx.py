"""Intel SGX: claims of an enclave, and the table of reference values for them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from cloister.attest.dcap.endorsements import DcapEndorsements
from cloister.attest.dcap.quote import TEE_TYPE_SGX
from cloister.attest.dcap.roots import intel_roots
from cloister.attest.dcap.verify import render_time, verify_quote
from cloister.attest.model import Claims, Endorsements
from cloister.attest.rules import AtLeast, EachAtLeast, NotOlderThan, OneOf, OneWord, Rule, Subset, Unless
from cloister.attest.scheme import Scheme

TCB_STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
)
_DEBUG = 0x02


@dataclass(frozen=True, slots=True, kw_only=True)
class SgxClaims(Claims):
    """What an SGX quote says. Offsets and meanings: ``cloister.attest.dcap.quote``."""

    quote_version: int
    cpu_svn: bytes
    misc_select: bytes
    attributes: bytes
    mr_enclave: bytes
    mr_signer: bytes
    isv_prod_id: int
    isv_svn: int
    fmspc: str
    tcb_shortfall: tuple[str, ...]
    """What a platform that is not up to date lacks: ``TDX module SVN 6, needs 11``."""
    tcb_evaluation_data_number: int
    """Of TCB info; Intel raises it with each round of advisories."""
    qe_evaluation_data_number: int
    """Of QE identity."""
    collateral_issued: str
    collateral_expires: str


def verify_sgx(
    raw: bytes,
    endorsements: Endorsements | None,
    now: datetime,
    roots: Sequence[x509.Certificate] | None,
) -> SgxClaims:
    """Establish that an SGX quote (version 3) is genuine, and return its claims.

    Raises:
        MalformedInput, VerificationError: as ``verify_quote``.
    """
    verified = verify_quote(raw, endorsements, now, roots, tee_type=TEE_TYPE_SGX)
    body = verified.quote.body
    isv_prod_id, isv_svn = struct.unpack_from("<HH", body, 256)
    return SgxClaims(
        scheme="sgx",
        simulated=verified.simulated,
        debug=bool(body[48] & _DEBUG),
        report_data=body[320:384],
        tcb_status=verified.level.status,
        tcb_date=verified.level.date,
        advisory_ids=verified.level.advisory_ids,
        hardware_id=verified.chain.extension.ppid.hex(),
        quote_version=verified.quote.version,
        cpu_svn=body[:16],
        misc_select=body[16:20],
        attributes=body[48:64],
        mr_enclave=body[64:96],
        mr_signer=body[128:160],
        isv_prod_id=isv_prod_id,
        isv_svn=isv_svn,
        fmspc=verified.chain.extension.fmspc.hex(),
        tcb_shortfall=verified.shortfall,
        tcb_evaluation_data_number=verified.collateral.tcb_evaluation_data_number,
        qe_evaluation_data_number=verified.collateral.qe_evaluation_data_number,
        collateral_issued=render_time(verified.collateral.issued),
        collateral_expires=render_time(verified.collateral.expires),
    )


RULES: tuple[Rule, ...] = (
    OneOf("mr_enclave", 32, "measurement of the enclave", lambda claims: claims.mr_enclave, required=True),
    OneOf("mr_signer", 32, "signer of the enclave", lambda claims: claims.mr_signer),
    OneOf("attributes", 16, "flags and XFRM of the enclave", lambda claims: claims.attributes),
    EachAtLeast("min_cpu_svn", 16, "lowest CPUSVN", lambda claims: claims.cpu_svn),
    AtLeast(
        "min_isv_svn", "lowest version that the signer gave", lambda claims: claims.isv_svn, maximum=0xFFFF
    ),
    OneWord(
        "tcb_status",
        "how the vendor judges the platform's TCB",
        lambda claims: claims.tcb_status,
        known=TCB_STATUSES,
        default=("UpToDate",),
        explain=lambda claims: "; ".join(claims.tcb_shortfall),
    ),
    Subset(
        "allowed_advisory_ids",
        "security advisories that may be open on the platform",
        lambda claims: claims.advisory_ids,
    ),
    AtLeast(
        "min_tcb_evaluation_data_number",
        "lowest evaluation data number of the collateral, TCB info and QE identity",
        lambda claims: min(claims.tcb_evaluation_data_number, claims.qe_evaluation_data_number),
    ),
    NotOlderThan(
        "max_collateral_age_s",
        "age of the oldest document or list in the collateral",
        lambda claims: claims.collateral_issued,
    ),
    OneWord(
        "hardware_ids",
        "identities (PPID, hexadecimal) of the physical platforms that may be used",
        lambda claims: claims.hardware_id,
        fold_case=True,
    ),
    Unless("allow_debug", "the host reads a debug enclave's memory", lambda claims: claims.debug, "debug"),
)

SCHEME = Scheme(
    name="sgx",
    title="Intel SGX",
    verify=verify_sgx,
    parse_endorsements=DcapEndorsements.from_mapping,
    vendor_roots=intel_roots,
    claims=SgxClaims,
    rules=RULES,
    sound_status=frozenset({"UpToDate"}),
)
