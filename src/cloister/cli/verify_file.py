"""Verification of files: of `cloister evidence`, bundles of services, vendors' own bytes."""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from cloister.attest.appraisal import AppraisalDenied, ReferenceValues, appraise
from cloister.attest.binding import REPORT_DATA_BYTES, check_binding
from cloister.attest.evidence_file import (
    MAX_FILE_BYTES,
    EvidenceFile,
    nonce_data,
    parse_document,
    parse_evidence_file,
)
from cloister.attest.model import AttestationResult, Claims, Endorsements, Evidence
from cloister.attest.service import ServiceIdentity, verify_bundle
from cloister.attest.verifier import find_scheme, parse_endorsements, verify_evidence
from cloister.errors import BindingMismatch, ConfigError, MalformedInput

_Roots = Sequence[x509.Certificate] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions:
    """What the command line says about a file."""

    nonce: bytes | None
    report_data: bytes | None
    scheme: str | None
    """The file holds a vendor's own bytes of this scheme."""
    endorsements: Path | None
    fetch: bool
    config: Path | None
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Genuine evidence: the appraisal, the error if it was refused, and what the evidence binds."""

    result: AttestationResult
    denied: AppraisalDenied | None = None
    bound: dict[str, str] = field(default_factory=dict)
    identity: ServiceIdentity | None = None


def verify_file(path: Path, options: FileOptions, references: ReferenceValues, roots: _Roots) -> Verdict:
    """Verify and appraise what is in a file.

    Raises:
        ConfigError: unreadable, or an option is missing.
        MalformedInput, VerificationError: not genuine, or bound to something else.
    """
    raw = _read(path)
    if options.scheme is not None:
        find_scheme(options.scheme)
        return _evidence(EvidenceFile(evidence=Evidence(options.scheme, raw)), options, references, roots)
    try:
        document = parse_document(raw)
    except MalformedInput as error:
        raise MalformedInput(
            f"{path.name}: {error.message}", hint="for a vendor's own bytes give --scheme"
        ) from error
    if "models" in document:
        return _bundle(raw, document, options, references, roots)
    return _evidence(parse_evidence_file(document), options, references, roots)


def _evidence(
    file: EvidenceFile, options: FileOptions, references: ReferenceValues, roots: _Roots
) -> Verdict:
    scheme, raw = file.evidence.scheme, file.evidence.raw
    endorsements = _endorsements(scheme, raw, file.endorsements, options)
    claims = verify_evidence(scheme, raw, endorsements, options.now, roots=roots)
    bound = _check_bound(claims, file.runtime_data, options)
    try:
        return Verdict(result=appraise(claims, references, options.now), bound=bound)
    except AppraisalDenied as denied:
        return Verdict(result=denied.result, denied=denied, bound=bound)


def _bundle(
    raw: bytes,
    document: Mapping[str, Any],
    options: FileOptions,
    references: ReferenceValues,
    roots: _Roots,
) -> Verdict:
    if options.nonce is None:
        raise ConfigError(
            "a service's bundle answers a nonce", hint="give --nonce HEX, the one that was sent"
        )
    given = None
    if options.endorsements is not None:
        given = _read_endorsements(str(document.get("scheme")), options.endorsements)
    try:
        service = verify_bundle(
            raw,
            nonce=options.nonce,
            reference_values=references,
            now=options.now,
            roots=roots,
            endorsements=given,
        )
    except AppraisalDenied as denied:
        return Verdict(result=denied.result, denied=denied, bound={"nonce": "the given one"})
    return Verdict(result=service.result, bound={"nonce": "the given one"}, identity=service.identity)


def _check_bound(
    claims: Claims, runtime_data: Mapping[str, Any] | None, options: FileOptions
) -> dict[str, str]:
    """Compare ``report_data`` with what is known of it; say what has not been compared."""
    if runtime_data is not None:
        check_binding(claims, runtime_data)
    bound = {"report_data": claims.report_data.hex()}
    if options.report_data is not None:
        expected = options.report_data.ljust(REPORT_DATA_BYTES, b"\x00")
        if not hmac.compare_digest(claims.report_data, expected):
            raise BindingMismatch(
                f"evidence is bound to other data: found {claims.report_data.hex()[:16]}…,"
                f" expected {expected.hex()[:16]}…"
            )
        bound["report_data"] = "the given one"
    if options.nonce is not None:
        expected_data = nonce_data(options.nonce)
        if runtime_data is None:
            check_binding(claims, expected_data)
        elif runtime_data.get("nonce") != expected_data["nonce"]:
            raise BindingMismatch("evidence answers another nonce", hint="it may be a replay; ask again")
    fresh = options.nonce is not None or options.report_data is not None
    bound["nonce"] = "the given one" if options.nonce is not None else "not compared"
    if not fresh:
        bound["freshness"] = "unknown: no --nonce or --report-data was given, it may be a replay"
    return bound


def _endorsements(
    scheme: str, raw: bytes, brought: Mapping[str, Any] | None, options: FileOptions
) -> Endorsements | None:
    if options.endorsements is not None:
        return _read_endorsements(scheme, options.endorsements)
    if options.fetch:
        from cloister.attest.collateral import get_endorsements, make_sources
        from cloister.cli.serve import effective_settings

        settings = effective_settings(options.config, {}).collateral
        sources = make_sources(settings, os.environ, brought=brought)
        return get_endorsements(scheme, raw, sources, options.now)
    return None if brought is None else parse_endorsements(scheme, brought)


def _read_endorsements(scheme: str, path: Path) -> Endorsements:
    """From a file of endorsements alone, or from an evidence file that has them."""
    try:
        document = parse_document(_read(path))
    except MalformedInput as error:
        raise MalformedInput(f"{path.name}: {error.message}") from error
    inner = document.get("endorsements")
    return parse_endorsements(scheme, inner if isinstance(inner, dict) else document)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}", hint="a service's URL has https://"
        ) from error
    if len(raw) > MAX_FILE_BYTES:
        raise MalformedInput(f"{path.name} has more than {MAX_FILE_BYTES} bytes")
    return raw
