"""Which endorsements a piece of evidence needs: the names under which vendors keep them.

Evidence is not verified yet when its endorsements are looked for. What is read from it here is a question to
its vendor and nothing more; a wrong question gets endorsements that do not verify.

========= ============================================================= ==============================
vendor    a platform is named by                                        read from
========= ============================================================= ==============================
Intel     scheme, FMSPC, CA of the PCK certificate                      PCK chain inside the quote
AMD       product, key (VCEK or VLEK), CHIP_ID, reported TCB            report
========= ============================================================= ==============================
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, cast

from cryptography import x509

from cloister.attest.azure.evidence import parse_azure_evidence
from cloister.attest.azure.hcl import parse_hcl_report
from cloister.attest.azure.tdx import cut_quote
from cloister.attest.dcap.chain import MAX_CHAIN_BYTES, PCK_CA_NAMES, common_name
from cloister.attest.dcap.pck import parse_pck_extension
from cloister.attest.dcap.quote import TEE_TYPE_SGX, Quote, parse_quote
from cloister.attest.snp.endorsements import SnpEndorsements
from cloister.attest.snp.kds import products_of
from cloister.attest.snp.report import REPORT_BYTES, Report, parse_report
from cloister.attest.snp.table import split_evidence
from cloister.attest.verifier import find_scheme
from cloister.crypto.certificates import UNREADABLE
from cloister.errors import ConfigError, MalformedInput

Ca = Literal["platform", "processor"]
_CAS: dict[str, Ca] = dict(zip(PCK_CA_NAMES, ("platform", "processor"), strict=True))
_FMSPC = re.compile("[0-9a-f]{12}")
_DCAP_ECDSA = b"\x02\x00"


@dataclass(frozen=True, slots=True, kw_only=True)
class IntelPlatform:
    """A family of Intel platforms, and the CA that certifies its processors.

    Raises:
        ConfigError: not an FMSPC of 12 hexadecimal digits, an unknown CA or scheme.
    """

    scheme: str
    """``tdx`` or ``sgx``: they have TCB info and a quoting enclave of their own."""
    fmspc: str
    ca: Ca

    def __post_init__(self) -> None:
        if not _FMSPC.fullmatch(self.fmspc):
            raise ConfigError(f"FMSPC {self.fmspc[:40]!r} is not 12 lower-case hexadecimal digits")
        if self.ca not in _CAS.values():
            raise ConfigError(f"unknown PCK CA {self.ca[:40]!r}, known are {', '.join(_CAS.values())}")
        if self.scheme not in ("tdx", "sgx"):
            raise ConfigError(f"unknown Intel scheme {self.scheme[:40]!r}, known are tdx, sgx")

    @property
    def key(self) -> dict[str, str]:
        """The name of its endorsements in caches and bundles."""
        return {"scheme": self.scheme, "fmspc": self.fmspc, "ca": self.ca}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class AmdPlatform:
    """An AMD processor at the TCB that a report states."""

    product: str
    report: Report

    def __repr__(self) -> str:
        return f"AmdPlatform({self.key!r})"

    @property
    def key(self) -> dict[str, str]:
        """The name of its endorsements in caches and bundles."""
        return {
            "scheme": "sev-snp",
            "product": self.product,
            "kind": self.report.signing_key,
            "chip_id": self.report.chip_id.hex(),
            "tcb": self.report.reported_tcb.hex(),
        }


Platform = IntelPlatform | AmdPlatform


@dataclass(frozen=True, slots=True, repr=False)
class Wanted:
    """What to look for: the platforms that the evidence may be of, best guess first."""

    scheme: str
    platforms: tuple[Platform, ...]
    """Several for a version 2 report of SEV-SNP, which does not name its product. Empty for a scheme whose
    vendor has no service to ask."""
    carried: SnpEndorsements = field(default_factory=SnpEndorsements)
    """What is inside the evidence itself: the host's certificate table behind a report, Azure's VCEK."""

    def __repr__(self) -> str:
        return f"Wanted({self.label})"

    @property
    def label(self) -> str:
        """One line for messages."""
        if not self.platforms:
            return self.scheme
        platform = self.platforms[0]
        if isinstance(platform, IntelPlatform):
            return f"{platform.scheme} FMSPC {platform.fmspc} ({platform.ca})"
        products = "/".join(cast(AmdPlatform, item).product for item in self.platforms)
        chip = platform.key["chip_id"]
        return f"sev-snp {products} {platform.key['kind'].upper()}, chip {chip[:16]}…"


def read_wanted(scheme: str, evidence: bytes) -> Wanted:
    """What endorsements ``evidence`` needs.

    Raises:
        MalformedInput: an unknown scheme, or evidence without the declared form.
    """
    find_scheme(scheme)
    if scheme in ("tdx", "sgx"):
        return Wanted(scheme, (_intel(scheme, parse_quote(evidence)),))
    if scheme == "sev-snp":
        report, table = split_evidence(evidence)
        return _amd(scheme, report, SnpEndorsements().completed_by(table))
    if scheme == "az-tdx-vtpm":
        td_quote = parse_azure_evidence(evidence).td_quote
        if td_quote is None:
            raise MalformedInput("Azure evidence has no td_quote")
        return Wanted(scheme, (_intel("tdx", parse_quote(cut_quote(td_quote))),))
    if scheme == "az-snp-vtpm":
        azure = parse_azure_evidence(evidence)
        carried = SnpEndorsements.from_mapping({"cert_chain": list(azure.vcek)})
        return _amd(scheme, parse_hcl_report(azure.hcl_report).hardware_report, carried)
    return Wanted(scheme, ())


def intel_platform(scheme: str, fmspc: str, ca: str) -> IntelPlatform:
    """A platform that a person names; ConfigError as ``IntelPlatform``."""
    return IntelPlatform(scheme=scheme, fmspc=fmspc.lower(), ca=cast(Ca, ca))


def detect_scheme(evidence: bytes) -> str:
    """The scheme of a bare quote or report, by its first bytes.

    Raises:
        MalformedInput: neither a DCAP quote nor an SEV-SNP report.
    """
    version = int.from_bytes(evidence[:2], "little")
    if version in (3, 4, 5) and evidence[2:4] == _DCAP_ECDSA:
        return "sgx" if int.from_bytes(evidence[4:8], "little") == TEE_TYPE_SGX else "tdx"
    if 2 <= version <= 5 and evidence[2:4] == bytes(2) and len(evidence) >= REPORT_BYTES:
        return "sev-snp"
    raise MalformedInput("neither a DCAP quote nor an SEV-SNP report", hint="say which with --scheme")


def _intel(scheme: str, quote: Quote) -> IntelPlatform:
    pem = quote.pck_chain.rstrip(b"\x00")
    if len(pem) > MAX_CHAIN_BYTES:
        raise MalformedInput(f"PCK chain has {len(pem)} bytes, at most {MAX_CHAIN_BYTES} are read")
    try:
        pck, authority = x509.load_pem_x509_certificates(pem)[:2]
        name = common_name(authority)
        fmspc = parse_pck_extension(pck).fmspc.hex()
    except UNREADABLE as error:
        raise MalformedInput("PCK chain is not a chain of certificates in PEM") from error
    if name not in _CAS:
        raise MalformedInput(f"PCK certificate is of {name[:60]!r}, expected {' or '.join(PCK_CA_NAMES)}")
    return IntelPlatform(scheme=scheme, fmspc=fmspc, ca=_CAS[name])


def _amd(scheme: str, raw: bytes, carried: SnpEndorsements) -> Wanted:
    report = parse_report(raw)
    platforms = tuple(AmdPlatform(product=product, report=report) for product in products_of(report))
    return Wanted(scheme, platforms, carried)
