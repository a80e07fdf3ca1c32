"""Intel TDX: claims of a trust domain, and the table of reference values for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from cryptography import x509

from cloister.attest.dcap.endorsements import DcapEndorsements
from cloister.attest.dcap.quote import TEE_TYPE_TDX
from cloister.attest.dcap.roots import intel_roots
from cloister.attest.dcap.verify import render_time, verify_quote
from cloister.attest.eventlog import attach_event_log
from cloister.attest.model import Claims, Endorsements
from cloister.attest.rules import AtLeast, EachAtLeast, NotOlderThan, OneOf, OneWord, Rule, Subset, Unless
from cloister.attest.scheme import Scheme
from cloister.errors import VerificationError

REGISTER_BYTES = 48
TCB_STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
)
_TUD = 0xFF
_SERVTD_EXT, _SEPT_VE_DISABLE, _MIGRATABLE, _PKS, _KEY_LOCKER = 17, 28, 29, 30, 31
_RESERVED = sum(1 << bit for bit in (1, 2, 3, *range(7, 16), *range(23, 27), *range(32, 62)))


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxClaims(Claims):
    """What a TDX quote says. Offsets and meanings: ``cloister.attest.dcap.quote``."""

    quote_version: int
    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmrs: tuple[bytes, ...]
    tee_tcb_svn2: bytes
    """Current SVNs; equal to ``tee_tcb_svn`` for TD 1.0, which has no such field."""
    mr_service_td: bytes
    """Zero for TD 1.0, which has no such field."""
    fmspc: str
    tcb_shortfall: tuple[str, ...]
    """What a platform that is not up to date lacks: ``TDX module SVN 6, needs 11``."""
    tcb_evaluation_data_number: int
    """Of TCB info; Intel raises it with each round of advisories."""
    qe_evaluation_data_number: int
    """Of QE identity."""
    collateral_issued: str
    collateral_expires: str
    events: tuple[Mapping[str, Any], ...] | None = None
    """What extended the RTMRs, replayed by ``attach_events``; None without an event log."""

    def attribute(self, bit: int) -> bool:
        """One bit of ``td_attributes``."""
        return bool(int.from_bytes(self.td_attributes, "little") >> bit & 1)


def verify_tdx(
    raw: bytes,
    endorsements: Endorsements | None,
    now: datetime,
    roots: Sequence[x509.Certificate] | None,
) -> TdxClaims:
    """Establish that a TDX quote (version 4 or 5) is genuine, and return its claims.

    Raises:
        MalformedInput, VerificationError: as ``verify_quote``; and reserved attribute bits that are set.
    """
    verified = verify_quote(raw, endorsements, now, roots, tee_type=TEE_TYPE_TDX)
    body = verified.quote.body
    attributes = int.from_bytes(body[120:128], "little")
    if attributes & _RESERVED:
        raise VerificationError(f"reserved bits are set in TD attributes {body[120:128].hex()}")
    return TdxClaims(
        scheme="tdx",
        simulated=verified.simulated,
        debug=bool(attributes & _TUD),
        report_data=body[520:584],
        tcb_status=verified.level.status,
        tcb_date=verified.level.date,
        advisory_ids=verified.level.advisory_ids,
        hardware_id=verified.chain.extension.ppid.hex(),
        quote_version=verified.quote.version,
        tee_tcb_svn=body[:16],
        mr_seam=body[16:64],
        mr_signer_seam=body[64:112],
        seam_attributes=body[112:120],
        td_attributes=body[120:128],
        xfam=body[128:136],
        mr_td=body[136:184],
        mr_config_id=body[184:232],
        mr_owner=body[232:280],
        mr_owner_config=body[280:328],
        rtmrs=tuple(body[offset : offset + REGISTER_BYTES] for offset in range(328, 520, REGISTER_BYTES)),
        tee_tcb_svn2=body[584:600] or body[:16],
        mr_service_td=body[600:648] or bytes(REGISTER_BYTES),
        fmspc=verified.chain.extension.fmspc.hex(),
        tcb_shortfall=verified.shortfall,
        tcb_evaluation_data_number=verified.collateral.tcb_evaluation_data_number,
        qe_evaluation_data_number=verified.collateral.qe_evaluation_data_number,
        collateral_issued=render_time(verified.collateral.issued),
        collateral_expires=render_time(verified.collateral.expires),
    )


def attach_events(claims: TdxClaims, ccel: bytes, *, registers: Collection[int] = range(4)) -> TdxClaims:
    """Establish that ``ccel`` is this trust domain's event log; the claims with its events.

    Args:
        ccel: the ACPI table's log area (TCG2, crypto-agile, SHA-384).
        registers: numbers of the RTMRs that the log must account for. Leave one out that is extended without
            being logged; its events are left out too.
    Raises:
        BindingMismatch: the log does not replay to the RTMRs in the quote.
        MalformedInput: not such a log.
    """
    attached = attach_event_log(claims, ccel, registers=registers)
    return replace(claims, events=tuple(event.to_mapping() for event in attached.events))


def _event_digests(claims: TdxClaims) -> tuple[str, ...]:
    if claims.events is None:
        return ("no event log",)
    return tuple(str(event["digest"]) for event in claims.events)


def _register(name: str, about: str, *, required: bool = False) -> OneOf:
    return OneOf(name, REGISTER_BYTES, about, lambda claims: getattr(claims, name), required=required)


def _rtmr(index: int, about: str) -> OneOf:
    return OneOf(f"rtmr{index}", REGISTER_BYTES, about, lambda claims: claims.rtmrs[index])


def _permit(name: str, bit: int, property_name: str, about: str) -> Unless:
    return Unless(name, about, lambda claims: claims.attribute(bit), property_name)


RULES: tuple[Rule, ...] = (
    _register("mr_td", "measurement of the TD's initial contents", required=True),
    _register("mr_config_id", "software-defined identity of the configuration"),
    _register("mr_owner", "software-defined identity of the owner"),
    _register("mr_owner_config", "owner-defined configuration"),
    _rtmr(0, "run-time register 0: firmware configuration, usually"),
    _rtmr(1, "run-time register 1: kernel, usually"),
    _rtmr(2, "run-time register 2: command line and initial RAM disk, usually"),
    _rtmr(3, "run-time register 3: the workload's own"),
    _register("mr_seam", "measurement of the TDX module"),
    _register("mr_signer_seam", "signer of the TDX module; TCB info is checked in any case"),
    OneOf("xfam", 8, "extended features that the TD may use", lambda claims: claims.xfam),
    OneOf(
        "mr_service_td",
        REGISTER_BYTES,
        "service TDs that are bound to this one",
        lambda claims: claims.mr_service_td,
        default=("00" * REGISTER_BYTES,),
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
    EachAtLeast("min_tee_tcb_svn", 16, "lowest TEE_TCB_SVN", lambda claims: claims.tee_tcb_svn),
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
    OneWord(
        "fmspcs",
        "families of platforms (FMSPC, hexadecimal) that may be used",
        lambda claims: claims.fmspc,
        fold_case=True,
    ),
    Subset(
        "allowed_event_digests",
        "SHA-384 digests of the events that may have extended the RTMRs; denied without an event log",
        _event_digests,
    ),
    Unless("allow_debug", "the host reads a debug TD's memory", lambda claims: claims.debug, "debug"),
    Unless(
        "allow_sept_ve",
        "without SEPT_VE_DISABLE the host can raise #VE in the TD's kernel at will",
        lambda claims: not claims.attribute(_SEPT_VE_DISABLE),
        "sept_ve",
    ),
    _permit("allow_migration", _MIGRATABLE, "migratable", "the TD can be moved to another platform"),
    _permit("allow_service_td_extension", _SERVTD_EXT, "service_td_extension", "service TDs may be rebound"),
    _permit("allow_pks", _PKS, "pks", "the TD may use supervisor protection keys"),
    _permit("allow_key_locker", _KEY_LOCKER, "key_locker", "the TD may use Key Locker"),
)

SCHEME = Scheme(
    name="tdx",
    title="Intel TDX",
    verify=verify_tdx,
    parse_endorsements=DcapEndorsements.from_mapping,
    vendor_roots=intel_roots,
    claims=TdxClaims,
    rules=RULES,
    sound_status=frozenset({"UpToDate"}),
)
