"""AMD SEV-SNP: claims of a guest, the table of reference values for them, and the scheme.

AMD publishes no judgement of TCB levels; ``min_tcb`` is for that. ``tcb_status`` says how the three levels
in a report lie to each other:

=============== ====================================================================================
word            meaning
=============== ====================================================================================
``Committed``   reported, committed and current level are one: what the certificate says is what runs
``Reported``    the host has the key derived from an older level than what runs (it may: to keep a fleet
                on one level); the older level is all that is proven
``Provisional`` firmware runs that is not committed: the host may go back to the committed level unseen
=============== ====================================================================================

Where both of the last two hold, it is ``Provisional``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from cloister.attest.model import Claims, Endorsements
from cloister.attest.rules import AtLeast, OneOf, OneWord, Rule, Unless
from cloister.attest.scheme import Scheme
from cloister.attest.snp.bits import PLATFORM_FLAGS, POLICY_FLAGS, decode_platform_info, decode_policy
from cloister.attest.snp.chain import RevocationList
from cloister.attest.snp.endorsements import SnpEndorsements
from cloister.attest.snp.report import Report
from cloister.attest.snp.roots import amd_roots
from cloister.attest.snp.rules import AtMost, CrlNotOlderThan, EachSet, Permitted, TcbAtLeast, VersionAtLeast
from cloister.attest.snp.tcb import PRODUCTS, decode_tcb
from cloister.attest.snp.verify import chip_id_of, verify_report

TCB_STATUSES = ("Committed", "Reported", "Provisional")


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpClaims(Claims):
    """What an SEV-SNP report says. Offsets and meanings: ``cloister.attest.snp.report``."""

    version: int
    """Of the report."""
    guest_svn: int
    policy: int
    guest_policy: Mapping[str, bool | int]
    """``policy`` by name (``cloister.attest.snp.bits``)."""
    family_id: bytes
    image_id: bytes
    vmpl: int
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    author_key_en: bool
    mask_chip_key: bool
    """Always false: a report with a masked key is not signed."""
    signing_key: str
    """``vcek`` or ``vlek``."""
    report_id: bytes
    report_id_ma: bytes
    chip_id: bytes
    """64 bytes; zero where the host masks it."""
    current_tcb: Mapping[str, int]
    """Components by name: fmc (Turin only), bootloader, tee, snp, microcode."""
    reported_tcb: Mapping[str, int]
    committed_tcb: Mapping[str, int]
    launch_tcb: Mapping[str, int]
    platform_info: int
    platform: Mapping[str, bool]
    """``platform_info`` by name."""
    current_version: str
    """Major, minor and build of the firmware: ``1.55.29``."""
    committed_version: str
    cpuid_fam_id: int | None
    """None before version 3 of the report."""
    cpuid_mod_id: int | None
    cpuid_step: int | None
    launch_mit_vector: int | None
    """None before version 5."""
    current_mit_vector: int | None
    product: str
    """Product line: Milan, Genoa, Turin."""
    product_name: str
    """As the certificate has it: ``Milan-B0``."""
    csp_id: str
    """The cloud provider that a VLEK is of; empty for a VCEK."""
    crl_issued: str
    """When the CRL that was consulted was issued; empty if none was."""
    endorsement_expires: str
    """When the first of VCEK (or VLEK) and its authority's certificate expires."""


def verify_snp(
    raw: bytes,
    endorsements: Endorsements | None,
    now: datetime,
    roots: Sequence[x509.Certificate] | None,
) -> SnpClaims:
    """Establish that an SEV-SNP report is genuine, and return its claims.

    Raises:
        MalformedInput, VerificationError: as ``verify_report``.
    """
    verified = verify_report(raw, endorsements, now, roots)
    report, extensions = verified.report, verified.chain.extensions
    guest_policy = decode_policy(report.policy)
    family, model, stepping = report.cpuid or (None, None, None)
    hardware_id = chip_id_of(extensions) or (report.chip_id if any(report.chip_id) else b"")
    return SnpClaims(
        scheme="sev-snp",
        simulated=verified.chain.simulated,
        debug=bool(guest_policy["debug"]),
        report_data=report.report_data,
        tcb_status=_status(report),
        tcb_date="",
        advisory_ids=(),
        hardware_id=hardware_id.hex(),
        version=report.version,
        guest_svn=report.guest_svn,
        policy=report.policy,
        guest_policy=guest_policy,
        family_id=report.family_id,
        image_id=report.image_id,
        vmpl=report.vmpl,
        measurement=report.measurement,
        host_data=report.host_data,
        id_key_digest=report.id_key_digest,
        author_key_digest=report.author_key_digest,
        author_key_en=report.author_key_en,
        mask_chip_key=report.mask_chip_key,
        signing_key=report.signing_key,
        report_id=report.report_id,
        report_id_ma=report.report_id_ma,
        chip_id=report.chip_id,
        current_tcb=decode_tcb(report.current_tcb, extensions.product),
        reported_tcb=decode_tcb(report.reported_tcb, extensions.product),
        committed_tcb=decode_tcb(report.committed_tcb, extensions.product),
        launch_tcb=decode_tcb(report.launch_tcb, extensions.product),
        platform_info=report.platform_info,
        platform=decode_platform_info(report.platform_info),
        current_version=str(report.current_version),
        committed_version=str(report.committed_version),
        cpuid_fam_id=family,
        cpuid_mod_id=model,
        cpuid_step=stepping,
        launch_mit_vector=report.launch_mit_vector,
        current_mit_vector=report.current_mit_vector,
        product=extensions.product,
        product_name=extensions.product_name,
        csp_id=extensions.csp_id,
        crl_issued=_issued(verified.crl),
        endorsement_expires=min(end for _, _, end in verified.chain.windows).isoformat(),
    )


def _status(report: Report) -> str:
    if report.committed_tcb != report.current_tcb or report.committed_version != report.current_version:
        return "Provisional"
    return "Committed" if report.reported_tcb == report.current_tcb else "Reported"


def _issued(crl: RevocationList | None) -> str:
    return crl.issued.isoformat() if crl else ""


RULES: tuple[Rule, ...] = (
    OneOf("measurement", 48, "launch digest of the guest", lambda claims: claims.measurement, required=True),
    OneOf("host_data", 32, "data that the host gave at launch", lambda claims: claims.host_data),
    OneOf("id_key_digests", 48, "key that signed the ID block", lambda claims: claims.id_key_digest),
    OneOf("author_key_digests", 48, "key that certified the ID key", lambda claims: claims.author_key_digest),
    OneOf("family_ids", 16, "family in the ID block", lambda claims: claims.family_id),
    OneOf("image_ids", 16, "image in the ID block", lambda claims: claims.image_id),
    AtLeast("min_guest_svn", "lowest version that the guest's owner gave", lambda claims: claims.guest_svn),
    AtMost(
        "max_vmpl",
        "privilege level that asked for the report",
        lambda claims: claims.vmpl,
        maximum=3,
        default=0,
    ),
    TcbAtLeast("min_tcb", "lowest reported versions", lambda claims: claims.reported_tcb),
    TcbAtLeast("min_committed_tcb", "lowest committed versions", lambda claims: claims.committed_tcb),
    TcbAtLeast("min_launch_tcb", "lowest versions at launch", lambda claims: claims.launch_tcb),
    OneWord(
        "tcb_status",
        "how reported, committed and current TCB lie to each other",
        lambda claims: claims.tcb_status,
        known=TCB_STATUSES,
    ),
    VersionAtLeast("min_api", "lowest version of the firmware", lambda claims: claims.current_version),
    OneWord("products", "product line", lambda claims: claims.product, known=PRODUCTS),
    OneWord(
        "signing_keys",
        "whether the chip's or the cloud provider's key signed",
        lambda claims: claims.signing_key,
        known=("vcek", "vlek"),
    ),
    OneWord("csp_ids", "cloud provider that a VLEK is of", lambda claims: claims.csp_id),
    OneWord(
        "hardware_ids",
        "identities (CHIP_ID, hexadecimal) of the processors that may be used",
        lambda claims: claims.hardware_id,
        fold_case=True,
    ),
    EachSet(
        "policy_flags",
        "what the guest's policy must demand or permit",
        lambda claims: claims.guest_policy,
        known=POLICY_FLAGS,
    ),
    EachSet(
        "platform_flags",
        "what the platform must have switched on",
        lambda claims: claims.platform,
        known=PLATFORM_FLAGS,
    ),
    CrlNotOlderThan(
        "max_crl_age_s",
        "age of AMD's revocation list, which must have been consulted",
        lambda claims: claims.crl_issued,
    ),
    Unless(
        "allow_debug",
        "the host reads and writes a debug guest's memory",
        lambda claims: claims.debug,
        "debug",
    ),
    Unless(
        "allow_migration",
        "a migration agent may move the guest",
        lambda claims: claims.guest_policy["migrate_ma"],
        "migrate_ma",
    ),
    Permitted(
        "allow_smt",
        "the guest accepts simultaneous multithreading, a channel between threads of one core",
        lambda claims: claims.guest_policy["smt"],
        "smt",
    ),
)

SCHEME = Scheme(
    name="sev-snp",
    title="AMD SEV-SNP",
    verify=verify_snp,
    parse_endorsements=SnpEndorsements.from_mapping,
    vendor_roots=amd_roots,
    claims=SnpClaims,
    rules=RULES,
    sound_status=frozenset({"Committed"}),
)
