"""AMD's endorsements from its Key Distribution Service.

The paths are those of ``cloister.attest.snp.kds``. VLEK certificates are not there: only the cloud provider
has them, and gives them to the guest with the report. For a report signed with a VLEK, or by a chip whose
identity the host masks, this source gets the chain and the CRL, and verification takes the key's own
certificate from the evidence.

Source: AMD 57230 (VCEK Certificate and KDS Interface) revision 1.00, chapter 4.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from urllib.parse import urlsplit

from cloister.attest.collateral.entry import Entry
from cloister.attest.collateral.fetch import Get, HttpFetcher, NotKnown, check_base
from cloister.attest.collateral.parts import read_parts
from cloister.attest.collateral.platform import AmdPlatform, Wanted
from cloister.attest.snp.endorsements import SnpEndorsements
from cloister.attest.snp.kds import AMD_KDS, chain_url, crl_url, vcek_url
from cloister.errors import MalformedInput, TransportError


class KdsSource:
    """AMD's service, or a cache that speaks its interface.

    Args:
        url: base; the service's paths are appended.
    Raises:
        ConfigError: not a usable URL.
    """

    def __init__(self, fetcher: HttpFetcher, url: str = AMD_KDS) -> None:
        self._fetcher = fetcher
        self._base = check_base(url, "collateral.kds_url")

    @property
    def name(self) -> str:
        return f"AMD KDS at {urlsplit(self._base).netloc}"

    def find(self, wanted: Wanted, now: datetime) -> Entry | None:
        """Certificates and CRL, of the first product that knows this chip; None for another vendor's."""
        platforms = [item for item in wanted.platforms if isinstance(item, AmdPlatform)]
        if not platforms:
            return None
        with self._fetcher.session() as get:
            for platform in platforms[:-1]:
                try:
                    return Entry(platform.key, self._fetch(get, platform), now, self.name)
                except NotKnown:
                    continue
            return Entry(platforms[-1].key, self._fetch(get, platforms[-1]), now, self.name)

    def _fetch(self, get: Get, platform: AmdPlatform) -> SnpEndorsements:
        report, product = platform.report, platform.product
        kind = report.signing_key
        members: dict[str, bytes] = {}
        if kind == "vcek" and any(report.chip_id):
            members["vcek"] = get(vcek_url(report, product, base=self._base)).body
        members["cert_chain"] = get(chain_url(product, kind, base=self._base)).body
        members["crl"] = get(crl_url(product, kind, base=self._base)).body
        try:
            return read_certificates(members)
        except MalformedInput as error:
            raise TransportError(f"{self.name} sent no usable certificates: {error.message}") from error


def read_certificates(bodies: Mapping[str, bytes]) -> SnpEndorsements:
    """Endorsements from the service's answers, by member of ``SnpEndorsements`` or ``cert_chain``.

    Raises:
        MalformedInput: one of them is no certificate, chain or CRL.
    """
    encoded = {name: base64.b64encode(body).decode("ascii") for name, body in bodies.items()}
    endorsements = SnpEndorsements.from_mapping(encoded)
    read_parts(endorsements)
    return endorsements
