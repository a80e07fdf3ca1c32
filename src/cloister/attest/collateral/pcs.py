"""Intel's endorsements from its Provisioning Certification Service, or from a caching service (PCCS).

=================================================== ============================== ========================
path                                                answer                         chain in header
=================================================== ============================== ========================
``/sgx/certification/v4/pckcrl?ca=…&encoding=der``  CRL of the PCK CA              ``SGX-PCK-CRL-Issuer-``…
``/<tee>/certification/v4/tcb?fmspc=…&update=…``    ``{"tcbInfo", "signature"}``   ``TCB-Info-Issuer-``…
``/<tee>/certification/v4/qe/identity?update=…``    ``{"enclaveIdentity",          ``SGX-Enclave-Identity-
                                                    "signature"}``                 Issuer-``…
``/sgx/certification/v4/rootcacrl``                 CRL of the root; PCCS only,
                                                    Intel: ``INTEL_ROOT_CRL``
=================================================== ============================== ========================

``<tee>`` is ``sgx`` or ``tdx``. Headers end in ``Chain`` and hold PEM, percent-encoded. A PCCS gives
CRLs as hexadecimal text. What was signed is the member's exact text: it is cut out of the answer, never
parsed and written again.

Source: Intel SGX and TDX Provisioning Certification Service API, version 4; Intel PCCS Design Guide.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from cloister.attest.collateral.entry import Entry
from cloister.attest.collateral.fetch import Answer, Get, HttpFetcher, check_base
from cloister.attest.collateral.parts import read_crl, read_parts
from cloister.attest.collateral.platform import IntelPlatform, Wanted
from cloister.attest.dcap.chain import MAX_CHAIN_BYTES
from cloister.attest.dcap.endorsements import DcapEndorsements, parse_signed_json
from cloister.errors import MalformedInput, TransportError

INTEL_PCS = "https://api.trustedservices.intel.com"
INTEL_ROOT_CRL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
API = "certification/v4"
Update = Literal["standard", "early"]
_TCB_CHAIN = ("tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain")
_QE_CHAIN = ("sgx-enclave-identity-issuer-chain",)
_CRL_CHAIN = ("sgx-pck-crl-issuer-chain",)
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")


class PcsSource:
    """Intel's service, or a PCCS.

    Args:
        url: base; the paths of the API are appended. A base that ends in ``/sgx/certification/v4``, as
            PCCS clients are configured, is taken too.
        root_crl_url: where the root CA's CRL is; empty means Intel's distribution point for Intel's own
            service, and the PCCS itself for any other.
        update: ``standard``, or ``early`` for TCB info that Intel has published but does not enforce yet.
    Raises:
        ConfigError: not a usable URL.
    """

    def __init__(
        self,
        fetcher: HttpFetcher,
        url: str = INTEL_PCS,
        *,
        root_crl_url: str = "",
        update: Update = "standard",
    ) -> None:
        base = check_base(url, "collateral.pcs_url").removesuffix(f"/sgx/{API}")
        own = INTEL_ROOT_CRL if _host(base) == _host(INTEL_PCS) else f"{base}/sgx/{API}/rootcacrl"
        self._fetcher = fetcher
        self._base = base
        self._root_crl = check_base(root_crl_url, "collateral.root_crl_url") if root_crl_url else own
        self._update = update

    @property
    def name(self) -> str:
        early = ", early update" if self._update == "early" else ""
        return f"Intel PCS at {_host(self._base)}{early}"

    def find(self, wanted: Wanted, now: datetime) -> Entry | None:
        """Ask for the four parts that a quote of this platform needs; None for another vendor's."""
        for platform in wanted.platforms:
            if isinstance(platform, IntelPlatform):
                with self._fetcher.session() as get:
                    return Entry(platform.key, self._fetch(get, platform), now, self.name)
        return None

    def _fetch(self, get: Get, platform: IntelPlatform) -> DcapEndorsements:
        tee = f"{self._base}/{platform.scheme}/{API}"
        tcb = get(f"{tee}/tcb?fmspc={quote(platform.fmspc.upper())}&update={self._update}")
        tcb_info, tcb_info_signature = signed_member(tcb, "tcbInfo")
        _check_fmspc(tcb, tcb_info, platform)
        qe = get(f"{tee}/qe/identity?update={self._update}")
        qe_identity, qe_identity_signature = signed_member(qe, "enclaveIdentity")
        crl = get(f"{self._base}/sgx/{API}/pckcrl?ca={platform.ca}&encoding=der")
        try:
            endorsements = DcapEndorsements.from_mapping(
                {
                    "pck_crl_issuer_chain": issuer_chain(crl, _CRL_CHAIN),
                    "pck_crl": crl_der(crl).hex(),
                    "root_ca_crl": crl_der(get(self._root_crl)).hex(),
                    "tcb_info_issuer_chain": issuer_chain(tcb, _TCB_CHAIN),
                    "tcb_info": tcb_info,
                    "tcb_info_signature": tcb_info_signature,
                    "qe_identity_issuer_chain": issuer_chain(qe, _QE_CHAIN),
                    "qe_identity": qe_identity,
                    "qe_identity_signature": qe_identity_signature,
                }
            )
            read_parts(endorsements)
        except MalformedInput as error:
            raise TransportError(f"{self.name} sent no usable collateral: {error.message}") from error
        return endorsements


def signed_member(answer: Answer, name: str) -> tuple[str, str]:
    """The exact text of member ``name``, and the text of member ``signature``.

    Raises:
        TransportError: the answer is not an object of these two members.
    """
    try:
        members = member_texts(answer.body.decode("ascii"))
        signature = json.loads(members.get("signature", "null"))
    except (ValueError, RecursionError) as error:
        raise TransportError(f"{answer.where} sent no JSON object") from error
    if set(members) != {name, "signature"} or not isinstance(signature, str):
        raise TransportError(f"{answer.where} sent no object of {name} and signature")
    return members[name], signature


def member_texts(text: str) -> dict[str, str]:
    """The members of a JSON object, each as the text that it has in ``text``.

    Raises:
        ValueError: not an object, or a member that occurs twice.
    """
    members: dict[str, str] = {}
    at = _expect(text, 0, "{")
    while True:
        name, end = _DECODER.raw_decode(text, at)
        if not isinstance(name, str) or name in members:
            raise ValueError("a member's name is not a string, or occurs twice")
        begin = _expect(text, end, ":")
        _, end = _DECODER.raw_decode(text, begin)
        members[name] = text[begin:end]
        at = _skip(text, end)
        if text[at : at + 1] != ",":
            break
        at = _expect(text, at, ",")
    if _expect(text, at, "}") != len(text):
        raise ValueError("something follows the object")
    return members


def issuer_chain(answer: Answer, names: tuple[str, ...]) -> str:
    """The PEM in one of these headers.

    Raises:
        TransportError: there is none, or it is too long or not ASCII.
    """
    encoded = next((answer.headers[name] for name in names if name in answer.headers), None)
    if encoded is None or len(encoded) > 3 * MAX_CHAIN_BYTES:
        raise TransportError(f"{answer.where} sent no issuer chain in its header {names[0]}")
    pem = unquote(encoded)
    if not pem.isascii() or "-----BEGIN CERTIFICATE-----" not in pem:
        raise TransportError(f"{answer.where}: its header {names[0]} holds no certificates in PEM")
    return pem


def crl_der(answer: Answer) -> bytes:
    """A CRL as DER, whether it came as DER or, as a PCCS sends it, as hexadecimal text.

    Raises:
        TransportError: it is neither.
    """
    try:
        # DER begins with the byte 0x30; its hexadecimal text with the digit 3, which is the byte 0x33.
        der = answer.body if answer.body[:1] == b"\x30" else bytes.fromhex(answer.body.decode("ascii"))
        read_crl(der, "answer")
    except (ValueError, MalformedInput) as error:
        raise TransportError(f"{answer.where} sent no CRL in DER or hexadecimal") from error
    return der


def _check_fmspc(answer: Answer, tcb_info: str, platform: IntelPlatform) -> None:
    try:
        document: Mapping[str, object] = parse_signed_json(tcb_info, "TCB info")
    except MalformedInput as error:
        raise TransportError(f"{answer.where} sent no TCB info") from error
    found = (str(document.get("fmspc")).lower(), str(document.get("id")).lower())
    if found != (platform.fmspc, platform.scheme):
        raise TransportError(
            f"{answer.where} sent TCB info of {found[1][:20]!r} FMSPC {found[0][:20]!r}, asked for"
            f" {platform.scheme!r} {platform.fmspc!r}"
        )


def _expect(text: str, at: int, mark: str) -> int:
    at = _skip(text, at)
    if text[at : at + 1] != mark:
        raise ValueError(f"expected {mark!r} at {at}")
    return _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _host(url: str) -> str:
    parts = urlsplit(url)
    return parts.netloc.lower()
