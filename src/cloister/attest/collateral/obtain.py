"""Endorsements for a piece of evidence, from the first source that has them and where they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from cloister.attest.collateral.cache import CacheSource, default_cache
from cloister.attest.collateral.entry import Entry
from cloister.attest.collateral.fetch import HttpFetcher
from cloister.attest.collateral.files import BundleSource, EvidenceSource
from cloister.attest.collateral.kds import KdsSource
from cloister.attest.collateral.parts import unusable_parts
from cloister.attest.collateral.pcs import PcsSource
from cloister.attest.collateral.platform import Wanted, read_wanted
from cloister.attest.collateral.source import Source
from cloister.attest.model import Endorsements
from cloister.attest.snp.endorsements import SnpEndorsements
from cloister.errors import ConfigError, StaleEvidence, TransportError
from cloister.settings import CollateralSettings

DEFAULT_SOURCES = ("bundle", "vendor", "evidence")


def get_endorsements(
    scheme: str, evidence: bytes, sources: Sequence[Source], now: datetime
) -> Endorsements | None:
    """The endorsements that ``verify_evidence`` needs for ``evidence``; they are not verified here.

    Sources are asked in their order. One that has nothing, cannot be reached, or has only what does not hold
    at ``now`` is passed over.

    Args:
        now: aware time.
    Returns:
        None for a scheme whose vendor has no service, where no source has any: such evidence may bring all
        that it needs.
    Raises:
        MalformedInput: an unknown scheme, evidence without the declared form, or a damaged bundle.
        StaleEvidence: there are endorsements, but none that hold at ``now``.
        TransportError: no source has any, and at least one could not be asked.
        ConfigError: no source has any, or there is no source.
    """
    wanted = read_wanted(scheme, evidence)
    if not wanted.platforms:
        entries = (source.find(wanted, now) for source in sources)
        return next((entry.endorsements for entry in entries if entry is not None), None)
    return find_entry(wanted, sources, now).endorsements


def find_entry(wanted: Wanted, sources: Sequence[Source], now: datetime) -> Entry:
    """As ``get_endorsements``, with whose they are, when they were obtained and where."""
    if now.tzinfo is None:
        raise ConfigError("get_endorsements needs an aware time, found a naive one", hint="datetime.now(UTC)")
    failed: list[TransportError] = []
    stale: list[str] = []
    partial: Entry | None = None
    for source in sources:
        try:
            entry = source.find(wanted, now)
        except TransportError as error:
            failed.append(error)
            continue
        if entry is None:
            continue
        unusable = unusable_parts(entry.endorsements, now)
        if unusable:
            stale.append(f"{source.name}: {unusable[0]}")
        elif _lacks_key(entry, wanted):
            partial = partial or entry
        else:
            return _complete(entry, partial)
    reasons = "; ".join((*stale, *(error.message for error in failed)))
    if stale:
        raise StaleEvidence(f"no collateral for {wanted.label} holds now: {reasons}", hint="fetch it again")
    if failed:
        raise TransportError(f"no collateral for {wanted.label}: {reasons}", hint=failed[0].hint)
    if partial is not None:
        raise ConfigError(
            f"no certificate of the key of {wanted.label}: {partial.source} has only what is above it",
            hint="the host's certificate table (auxblob) has it: send it with the report",
        )
    asked = ", ".join(source.name for source in sources) or "no source is configured"
    raise ConfigError(
        f"no collateral for {wanted.label}: asked {asked}", hint="see [collateral] in the settings"
    )


def _lacks_key(entry: Entry, wanted: Wanted) -> bool:
    """AMD's service has neither VLEKs nor the VCEK of a chip that hides: they come with the evidence."""
    found = entry.endorsements
    if not isinstance(found, SnpEndorsements):
        return False
    return not any((found.vcek, found.vlek, wanted.carried.vcek, wanted.carried.vlek))


def _complete(entry: Entry, partial: Entry | None) -> Entry:
    """The entry with what it lacks and an earlier source, without the key's certificate, had."""
    if partial is None:
        return entry
    found, more = entry.endorsements, partial.endorsements
    if not isinstance(found, SnpEndorsements) or not isinstance(more, SnpEndorsements):
        return entry
    lacking = {
        item.name: getattr(more, item.name) for item in fields(found) if getattr(found, item.name) is None
    }
    return replace(entry, endorsements=replace(found, **lacking))


def make_sources(
    settings: CollateralSettings,
    environ: Mapping[str, str],
    *,
    brought: Mapping[str, Any] | None = None,
) -> tuple[Source, ...]:
    """The sources that the settings ask for, in their order.

    Args:
        environ: only for the default place of the cache.
        brought: JSON form of the endorsements that came with the evidence.
    Raises:
        ConfigError: a setting is not usable.
        MalformedInput: the bundle is not one.
    """
    sources: list[Source] = []
    for name in settings.sources or DEFAULT_SOURCES:
        if name == "bundle":
            if settings.bundle:
                sources.append(BundleSource.from_file(Path(settings.bundle)))
        elif name == "vendor":
            sources.extend(vendor_sources(settings, environ))
        else:
            sources.append(EvidenceSource(brought))
    return tuple(sources)


def vendor_sources(settings: CollateralSettings, environ: Mapping[str, str]) -> tuple[Source, ...]:
    """Intel's and AMD's services, behind the cache unless it is off."""
    fetcher = HttpFetcher(timeout_s=settings.timeout_s, ca=Path(settings.ca) if settings.ca else None)
    services: tuple[Source, ...] = (
        PcsSource(fetcher, settings.pcs_url, root_crl_url=settings.root_crl_url, update=settings.tcb_update),
        KdsSource(fetcher, settings.kds_url),
    )
    if settings.max_age_s == 0:
        return services
    folder = cache_folder(settings, environ)
    return tuple(CacheSource(service, folder, max_age_s=settings.max_age_s) for service in services)


def cache_folder(settings: CollateralSettings, environ: Mapping[str, str]) -> Path:
    """Where the cache is."""
    return Path(settings.cache) if settings.cache else default_cache(environ)
