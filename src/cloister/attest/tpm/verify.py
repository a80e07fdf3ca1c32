"""Is evidence of a TPM genuine? Claims of a TPM, and the table of reference values for them.

A TPM's quote is worth what is known of the key that signed it. Four things can be known, in ``tcb_status``:

============== =====================================================================================
``Certified``  a certificate leads from the key to a vendor's root, or AWS's document names it
``Endorsed``   the key is the one in the endorsements, which the caller vouches for
``Uncertified`` neither: anybody can have made the key. The reference values must list it, or deny
============== =====================================================================================

A TPM says what was started, not what protects it while it runs: the host may read the memory of a machine
that has nothing but a TPM.

Source: TCG Trusted Attestation Protocol, 1.0; TCG Trusted Platform Module Library 2.0, part 1, section 31.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography import x509

from cloister.attest.model import Claims, Endorsements
from cloister.attest.nitro.roots import aws_roots
from cloister.attest.rules import AtLeast, OneWord, Rule
from cloister.attest.scheme import Scheme
from cloister.attest.tpm.certificates import has_issuer, key_of, load_chain, verify_chain
from cloister.attest.tpm.endorsements import TpmEndorsements
from cloister.attest.tpm.events import replay_to_pcrs
from cloister.attest.tpm.evidence import TpmEvidence, parse_json_evidence
from cloister.attest.tpm.keys import AttestationKey, spki_of
from cloister.attest.tpm.nitro import verify_nitro_binding
from cloister.attest.tpm.protobuf import parse_protobuf_evidence
from cloister.attest.tpm.quote import PcrBanks, VerifiedTpmQuote, verify_tpm_quote
from cloister.attest.tpm.roots import azure_issuers, is_vendor_root, tpm_roots
from cloister.attest.tpm.rules import KnownKey, PcrValues
from cloister.errors import BindingMismatch, EndorsementMismatch, MalformedInput, UntrustedRoot

CERTIFIED, ENDORSED, UNCERTIFIED = "Certified", "Endorsed", "Uncertified"


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmClaims(Claims):
    """What a TPM's quotes say. Fields and meanings: ``cloister.attest.tpm.attest``.

    ``report_data`` is ``extraData``, up to 66 bytes. ``hardware_id`` is the SHA-256 of the attestation key's
    SubjectPublicKeyInfo.
    """

    pcrs: Mapping[str, Mapping[int, bytes]]
    """Quoted values, by bank (``sha256`` and so on) and number."""
    pcr_digest: bytes
    """Of the first quote."""
    qualified_signer: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    ak_subject: str
    """Subject of the key's certificate; empty if it has none."""
    root: str
    """Subject of the root that its chain ends in; the AWS module id for NitroTPM; empty if there is none."""
    events: tuple[Mapping[str, Any], ...] = ()
    """Of the event log, if evidence has one: ``register``, ``type``, ``bank``, ``digest`` and so on."""

    def to_mapping(self) -> dict[str, Any]:
        """Every claim as JSON; PCR numbers become text, as JSON requires."""
        mapping = Claims.to_mapping(self)
        mapping["pcrs"] = pcrs_to_mapping(self.pcrs)
        return mapping


@dataclass(frozen=True, slots=True)
class _KeyTrust:
    status: str
    simulated: bool
    subject: str = ""
    root: str = ""


def pcrs_to_mapping(pcrs: Mapping[str, Mapping[int, bytes]]) -> dict[str, dict[str, str]]:
    """PCR banks as JSON."""
    return {
        bank: {str(index): value.hex() for index, value in values.items()} for bank, values in pcrs.items()
    }


def verify_tpm(
    raw: bytes,
    endorsements: Endorsements | None,
    now: datetime,
    roots: Sequence[x509.Certificate] | None,
) -> TpmClaims:
    """Establish that evidence of a TPM is genuine, and return its claims.

    1. The evidence has its form; there is one attestation key, in it, its certificate or the endorsements.
    2. Every quote is signed by that key, carries the same nonce, and its PCR values hash to its digest.
    3. What is known of the key: its certificate leads to one of ``roots`` (the vendors' pinned keys, if None)
       and is valid at ``now``; AWS's document names it; the endorsements hold it; or nothing.
    4. The event log, if there is one, replays to the quoted PCRs.

    With ``roots`` given, a key that leads to none of them is refused, unless the endorsements hold it.

    Raises:
        MalformedInput: step 1.
        VerificationError: a later step; the subclass says which kind.
    """
    evidence = parse_evidence(raw)
    given = _given(endorsements)
    certificates = load_chain((*evidence.certificates, *given.ak_certificates))
    key = _attestation_key(evidence, given, certificates)
    quotes = [verify_tpm_quote(part, key) for part in evidence.quotes]
    _check_nonce(quotes, evidence.nonce)
    trust = _key_trust(evidence, given, certificates, key, quotes, now, roots)
    pcrs = merge_pcrs(quotes)
    events = () if evidence.event_log is None else replay_to_pcrs(evidence.event_log, pcrs)
    attest = quotes[0].attest
    return TpmClaims(
        scheme="tpm",
        simulated=trust.simulated,
        debug=False,
        report_data=attest.extra_data,
        tcb_status=trust.status,
        tcb_date="",
        advisory_ids=(),
        hardware_id=hashlib.sha256(spki_of(key)).hexdigest(),
        pcrs=pcrs,
        pcr_digest=attest.pcr_digest,
        qualified_signer=attest.qualified_signer,
        clock=attest.clock,
        reset_count=attest.reset_count,
        restart_count=attest.restart_count,
        safe=attest.safe,
        firmware_version=attest.firmware_version,
        ak_subject=trust.subject,
        root=trust.root,
        events=tuple(event.to_mapping() for event in events),
    )


def parse_evidence(raw: bytes) -> TpmEvidence:
    """The parts of evidence, JSON or protocol buffer; MalformedInput if it is neither."""
    return parse_json_evidence(raw) if raw.lstrip()[:1] == b"{" else parse_protobuf_evidence(raw)


def merge_pcrs(quotes: Sequence[VerifiedTpmQuote]) -> PcrBanks:
    """The PCR values of all quotes; BindingMismatch if two of them disagree."""
    merged: PcrBanks = {}
    for quote in quotes:
        for bank, values in quote.pcrs.items():
            known = merged.setdefault(bank, {})
            for index, value in values.items():
                if known.setdefault(index, value) != value:
                    raise BindingMismatch(f"quotes have different values of PCR {index} of {bank}")
    return merged


def _given(endorsements: Endorsements | None) -> TpmEndorsements:
    if endorsements is None:
        return TpmEndorsements()
    if not isinstance(endorsements, TpmEndorsements):
        raise MalformedInput(f"a TPM needs TpmEndorsements, found {type(endorsements).__name__}")
    return endorsements


def _attestation_key(
    evidence: TpmEvidence, given: TpmEndorsements, certificates: Sequence[x509.Certificate]
) -> AttestationKey:
    certified = key_of(certificates[0]) if certificates else None
    key = evidence.key or certified
    if key is None:
        raise MalformedInput("TPM evidence has neither an attestation key nor its certificate")
    if certified is not None and spki_of(certified) != spki_of(key):
        raise BindingMismatch("attestation key's certificate is of another key")
    if given.ak_public is not None and given.ak_public != spki_of(key):
        raise EndorsementMismatch("attestation key is another one than the endorsements hold")
    return key


def _check_nonce(quotes: Sequence[VerifiedTpmQuote], nonce: bytes | None) -> None:
    expected = quotes[0].attest.extra_data if nonce is None else nonce
    for quote in quotes:
        if quote.attest.extra_data != expected:
            raise BindingMismatch(
                f"TPM quote carries {quote.attest.extra_data.hex() or 'no nonce'}, expected {expected.hex()}"
            )


def _key_trust(
    evidence: TpmEvidence,
    given: TpmEndorsements,
    certificates: Sequence[x509.Certificate],
    key: AttestationKey,
    quotes: Sequence[VerifiedTpmQuote],
    now: datetime,
    roots: Sequence[x509.Certificate] | None,
) -> _KeyTrust:
    trusted = tpm_roots() if roots is None else tuple(roots)
    known = (*certificates[1:], *azure_issuers(), *trusted)
    # A lone certificate of an unknown issuer says nothing; Google's older TPMs hand out no other.
    lone = roots is None and len(certificates) == 1 and not has_issuer(certificates[0], known)
    if certificates and not lone:
        root = verify_chain((*certificates, *azure_issuers()), trusted, now)
        subject = certificates[0].subject.rfc4514_string()
        return _KeyTrust(CERTIFIED, not is_vendor_root(root), subject, root.subject.rfc4514_string())
    if evidence.nitro_document is not None:
        claims = verify_nitro_binding(evidence.nitro_document, key, quotes, now, roots)
        return _KeyTrust(CERTIFIED, claims.simulated, "", claims.module_id)
    if given.ak_public is not None:
        return _KeyTrust(ENDORSED, simulated=False)
    if roots is not None:
        raise UntrustedRoot("attestation key has no certificate, so it leads to none of the trusted roots")
    return _KeyTrust(UNCERTIFIED, simulated=False)


def vendor_roots() -> tuple[x509.Certificate, ...]:
    """Roots of attestation keys: Google's, Azure's, and AWS's of NitroTPM."""
    return (*tpm_roots(), *aws_roots())


PCR_RULE = PcrValues("pcrs", "what was started: values of platform configuration registers", lambda c: c.pcrs)

RULES: tuple[Rule, ...] = (
    PCR_RULE,
    KnownKey(
        "attestation_keys",
        "attestation keys that may sign",
        lambda claims: claims.hardware_id,
        lambda claims: claims.tcb_status != UNCERTIFIED,
    ),
    OneWord(
        "tcb_status",
        "what is known of the attestation key",
        lambda claims: claims.tcb_status,
        known=(CERTIFIED, ENDORSED, UNCERTIFIED),
    ),
    OneWord("roots", "subjects of the roots that may certify the key", lambda claims: claims.root),
    AtLeast(
        "min_firmware_version",
        "lowest firmware version, as the vendor counts",
        lambda claims: claims.firmware_version,
        maximum=2**63 - 1,
    ),
)

SCHEME = Scheme(
    name="tpm",
    title="TPM 2.0",
    verify=verify_tpm,
    parse_endorsements=TpmEndorsements.from_mapping,
    vendor_roots=vendor_roots,
    claims=TpmClaims,
    rules=RULES,
    sound_status=frozenset({CERTIFIED, ENDORSED}),
)
