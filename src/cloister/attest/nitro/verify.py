"""Is an AWS Nitro attestation document genuine? Enclaves and NitroTPM instances.

The document brings its own certificates; the leaf lives about three hours, so that a document proves itself
only shortly after it was made. AWS uses no revocation lists here and states no TCB level.

Source: AWS Nitro Enclaves attestation process, section 3.2.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from cryptography import x509

from cloister.attest.model import Claims, Endorsements
from cloister.attest.nitro.cose import parse_sign1
from cloister.attest.nitro.document import Document, parse_document
from cloister.attest.nitro.roots import aws_roots, is_aws_root
from cloister.attest.p384 import key_of, open_chain
from cloister.attest.rules import NotOlderThan, OneOf, OneWord, Rule, Unless
from cloister.attest.scheme import Scheme
from cloister.errors import MalformedInput

PCR_BYTES = 48
NO_TCB_STATUS = "NotApplicable"
_IMAGE_PCRS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class NitroEndorsements:
    """Nothing: a document brings all its certificates. Exists so that every scheme has such a class."""

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Endorsements from an empty JSON object.

        Raises:
            MalformedInput: it is not empty.
        """
        if not isinstance(mapping, Mapping) or mapping:
            raise MalformedInput("Nitro documents bring their own certificates; endorsements must be empty")
        return cls()

    def to_mapping(self) -> dict[str, Any]:
        """An empty JSON object."""
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class NitroClaims(Claims):
    """What an attestation document says. Members and lengths: ``cloister.attest.nitro.document``.

    ``report_data`` is ``user_data``, empty if there is none.
    """

    kind: str
    """``enclave`` or ``tpm``."""
    module_id: str
    """Instance and enclave, for example ``i-0de38b2b6853cc9e8-enc0193685e7fee7d85``."""
    digest: str
    timestamp: str
    pcrs: Mapping[int, bytes]
    """All locked PCRs by index; 48 bytes each."""
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None

    @property
    def instance_id(self) -> str:
        """The EC2 instance, the part of ``module_id`` before the enclave's own."""
        return "-".join(self.module_id.split("-")[:2])

    def to_mapping(self) -> dict[str, Any]:
        """Every claim as JSON; PCR indexes become text, as JSON requires."""
        mapping = Claims.to_mapping(self)
        mapping["pcrs"] = {str(index): value for index, value in mapping["pcrs"].items()}
        return mapping


def verify_nitro(
    raw: bytes,
    endorsements: Endorsements | None,
    now: datetime,
    roots: Sequence[x509.Certificate] | None,
) -> NitroClaims:
    """Establish that an attestation document is genuine, and return its claims.

    1. COSE_Sign1 with ES384, and a document with all members in their form.
    2. The chain (root first in the document) ends in one of ``roots``; constraints and key usage hold.
    3. Every certificate, the root included, is valid at ``now``.
    4. The leaf's key signed the document.

    Raises:
        MalformedInput: step 1, or a certificate that cannot be read.
        VerificationError: a later step; its subclass says why.
    """
    if endorsements is not None and not isinstance(endorsements, NitroEndorsements):
        raise MalformedInput("these endorsements are of another vendor than AWS")
    message = parse_sign1(raw)
    document = parse_document(message.payload)
    ders = (document.certificate, *reversed(document.cabundle))
    chain = open_chain(ders, aws_roots() if roots is None else tuple(roots), "Nitro certificate chain")
    chain.check_dates(now)
    message.verify(key_of(chain.leaf))
    return _claims(document, simulated=not is_aws_root(chain.root))


def _claims(document: Document, *, simulated: bool) -> NitroClaims:
    image = [document.pcrs.get(index, b"") for index in _IMAGE_PCRS]
    return NitroClaims(
        scheme="nitro",
        simulated=simulated,
        # An enclave that was started with --debug-mode has zeros instead of its image's measurements.
        debug=document.kind == "enclave" and not any(any(pcr) for pcr in image),
        report_data=document.user_data or b"",
        tcb_status=NO_TCB_STATUS,
        tcb_date="",
        advisory_ids=(),
        hardware_id="",
        kind=document.kind,
        module_id=document.module_id,
        digest=document.digest,
        timestamp=document.timestamp.isoformat(),
        pcrs=document.pcrs,
        public_key=document.public_key,
        user_data=document.user_data,
        nonce=document.nonce,
    )


def _pcr(index: int, about: str) -> OneOf:
    return OneOf(f"pcr{index}", PCR_BYTES, about, lambda claims: claims.pcrs.get(index), required=index == 0)


_PCR_MEANINGS = {
    0: "the enclave's image; firmware of a NitroTPM instance",
    1: "kernel and boot RAM disk; firmware configuration with NitroTPM",
    2: "the application",
    3: "IAM role of the parent instance",
    4: "instance id of the parent; boot loader with NitroTPM",
    7: "secure-boot policy, with NitroTPM",
    8: "certificate that signed the enclave's image",
    12: "kernel command line, usually, with NitroTPM",
}

RULES: tuple[Rule, ...] = (
    *(_pcr(index, _PCR_MEANINGS.get(index, "platform configuration register")) for index in range(24)),
    OneWord(
        "kind",
        "what made the document",
        lambda claims: claims.kind,
        known=("enclave", "tpm"),
        default=("enclave",),
    ),
    OneWord("module_id", "instance and enclave", lambda claims: claims.module_id),
    OneWord("instance_id", "EC2 instances that may be used", lambda claims: claims.instance_id),
    NotOlderThan("max_age_s", "age of the document", lambda claims: claims.timestamp),
    Unless("allow_debug", "the host reads a debug enclave's console", lambda claims: claims.debug, "debug"),
)

SCHEME = Scheme(
    name="nitro",
    title="AWS Nitro",
    verify=verify_nitro,
    parse_endorsements=NitroEndorsements.from_mapping,
    vendor_roots=aws_roots,
    claims=NitroClaims,
    rules=RULES,
    sound_status=frozenset({NO_TCB_STATUS}),
)
