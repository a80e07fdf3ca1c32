"""Obtaining endorsements: from the vendors' services, a cache, a bundle, or the evidence itself.

Nothing that is obtained here is believed; ``verify_evidence`` checks it as if a stranger had sent it.
"""

from cloister.attest.collateral.cache import CacheSource
from cloister.attest.collateral.entry import Entry, parse_bundle, render_bundle
from cloister.attest.collateral.fetch import HttpFetcher
from cloister.attest.collateral.files import BundleSource, EvidenceSource
from cloister.attest.collateral.kds import KdsSource
from cloister.attest.collateral.obtain import find_entry, get_endorsements, make_sources
from cloister.attest.collateral.pcs import PcsSource
from cloister.attest.collateral.platform import AmdPlatform, IntelPlatform, Wanted, read_wanted
from cloister.attest.collateral.source import Source

__all__ = [
    "AmdPlatform",
    "BundleSource",
    "CacheSource",
    "Entry",
    "EvidenceSource",
    "HttpFetcher",
    "IntelPlatform",
    "KdsSource",
    "PcsSource",
    "Source",
    "Wanted",
    "find_entry",
    "get_endorsements",
    "make_sources",
    "parse_bundle",
    "read_wanted",
    "render_bundle",
]
