"""Evidence of this machine's TPM: a quote of all SHA-256 PCRs by an attestation key.

Where the key comes from, the first that is there:

========================= ====================== =========================================================
key                       certificate            whose
========================= ====================== =========================================================
persistent 0x81000003     NV index 0x01C101D0    Azure
template in 0x01C10003    NV index 0x01C10002    Google, ECC; made again from the template at each use
template in 0x01C10001    NV index 0x01C10000    Google, RSA
persistent 0x81010002     none                   what Confidential Containers' guest components use
template below            none                   ours: ECC P-256, the same key until the TPM is cleared
========================= ====================== =========================================================

A key without a certificate is ``Uncertified`` to a verifier: it must be enrolled, that is, listed in the
reference values by its ``hardware_id`` (``cloister.attest.tpm``).

The firmware's event log goes along if it replays to the PCRs. Where something has extended one of its PCRs
later without logging it there, the log is left out: a log that does not replay would be refused.

tpm2-pytss is an optional package (extra ``tpm``) and needs tpm2-tss on the machine.

Source: TCG Trusted Platform Module Library 2.0, part 3; Google go-tpm-tools, ``client/handles.go``; Azure
"Trusted launch: guest attestation"; confidential-containers/guest-components, ``attester/src/tpm``.
"""

from __future__ import annotations

import base64
import importlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister.attest.attesters.report_data import check_report_data
from cloister.attest.eventlog.log import MAX_LOG_BYTES
from cloister.attest.model import Endorsements, Evidence
from cloister.attest.tpm.certificates import cut_certificate
from cloister.attest.tpm.events import replay_to_pcrs
from cloister.attest.tpm.keys import parse_tpmt_public
from cloister.attest.tpm.quote import PCRS, QuotePart, VerifiedTpmQuote, verify_tpm_quote
from cloister.errors import (
    BindingMismatch,
    KeyUnavailable,
    MalformedInput,
    MissingDependencyError,
    VerificationError,
)

TPM_DEVICE = Path("/dev/tpmrm0")
EVENT_LOG = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
BANK = "sha256"
ATTEMPTS = 5
_OWN_TEMPLATE = "ecc256:ecdsa-sha256:null"
_OWN_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign|noda"
_NV_CHUNK_BYTES = 512
_NV_LIMIT_BYTES = 8192
_HANDLE_LIMIT = 254
_PERSISTENT, _NV = 0x81000000, 0x01000000


@dataclass(frozen=True, slots=True)
class _Source:
    """One place where a provider keeps an attestation key."""

    persistent: int | None = None
    template: int | None = None
    certificate: int | None = None


SOURCES = (
    _Source(persistent=0x81000003, certificate=0x01C101D0),
    _Source(template=0x01C10003, certificate=0x01C10002),
    _Source(template=0x01C10001, certificate=0x01C10000),
    _Source(persistent=0x81010002),
    _Source(),
)


class VtpmAttester:
    """Obtains quotes from a TPM.

    Args:
        tcti: how to reach it, as tpm2-tools write it: ``device:/dev/tpmrm0``, ``swtpm:host=...,port=...``.
        event_log: the firmware's event log; None, or a file that is not there: evidence goes without.
    Raises:
        MissingDependencyError: tpm2-pytss, or the libraries that it needs, are not installed.
        KeyUnavailable: no TPM there.
    """

    scheme = "tpm"

    def __init__(self, tcti: str = f"device:{TPM_DEVICE}", *, event_log: Path | None = EVENT_LOG) -> None:
        self._pytss = _load_pytss()
        self._tcti = tcti
        self._event_log = event_log
        self._lock = threading.Lock()
        with self._tpm():
            pass

    def get_evidence(self, report_data: bytes) -> Evidence:
        """A quote with 64 bytes of ``report_data`` as its qualifying data.

        Raises:
            KeyUnavailable: the TPM failed, or PCRs kept changing.
        """
        check_report_data(report_data)
        with self._tpm() as tpm:
            public, certificate, part, verified = self._quote(tpm, report_data)
        quote = {
            "message": _base64(part.message),
            "signature": _base64(part.signature),
            "pcrs": {
                bank: {str(index): value.hex() for index, value in values.items()}
                for bank, values in verified.pcrs.items()
            },
        }
        document: dict[str, Any] = {"tpm_quote": quote, "ak_public": _base64(public)}
        if certificate is not None:
            document["ak_certificates"] = [_base64(certificate)]
        log = self._replayable_log(verified)
        if log is not None:
            document["event_log"] = _base64(log)
        return Evidence(self.scheme, json.dumps(document, separators=(",", ":")).encode())

    def get_endorsements(self) -> Endorsements | None:
        """None: the key's certificate, if it has one, is in the evidence."""
        return None

    @contextmanager
    def _tpm(self) -> Iterator[Any]:
        with self._lock:
            try:
                tpm = self._pytss.ESAPI(self._tcti)
            except self._pytss.TSS2_Exception as error:
                raise KeyUnavailable(
                    f"no TPM at {self._tcti!r}: {error}", hint="reading /dev/tpmrm0 needs the group tss"
                ) from error
            try:
                yield tpm
            except self._pytss.TSS2_Exception as error:
                raise KeyUnavailable(f"TPM failed: {error}") from error
            finally:
                tpm.close()

    def _quote(self, tpm: Any, report_data: bytes) -> tuple[bytes, bytes | None, QuotePart, VerifiedTpmQuote]:
        handle, public, certificate, transient = self._open_key(tpm)
        try:
            key = parse_tpmt_public(bytes(public.marshal()))
            for _ in range(ATTEMPTS):
                attest, signature = tpm.quote(handle, f"{BANK}:all", report_data)
                pcrs = {BANK: self._read_pcrs(tpm)}
                part = QuotePart(bytes(attest), bytes(signature.marshal()), pcrs)
                try:
                    verified = verify_tpm_quote(part, key)
                except BindingMismatch:
                    continue  # A PCR was extended between quote and reading.
                return bytes(public.marshal()), certificate, part, verified
        except (VerificationError, MalformedInput) as error:
            raise KeyUnavailable(f"TPM made no usable quote: {error.message}") from error
        finally:
            if transient:
                tpm.flush_context(handle)
        raise KeyUnavailable(f"PCRs kept changing during {ATTEMPTS} attempts to quote them")

    def _open_key(self, tpm: Any) -> tuple[Any, Any, bytes | None, bool]:
        """Handle, TPMT_PUBLIC, certificate, and whether the handle must be flushed."""
        there = {*self._handles(tpm, _PERSISTENT), *self._handles(tpm, _NV)}
        for source in SOURCES:
            needed = {source.persistent, source.template} - {None}
            if not needed <= there:
                continue
            certificate = self._read_certificate(tpm, source.certificate, there)
            if source.persistent is not None:
                handle = tpm.tr_from_tpmpublic(source.persistent)
                return handle, tpm.read_public(handle)[0].publicArea, certificate, False
            handle, public, *_ = tpm.create_primary(
                None, self._template(tpm, source.template), self._pytss.ESYS_TR.ENDORSEMENT
            )
            return handle, public.publicArea, certificate, True
        raise AssertionError("the last source needs nothing")

    def _template(self, tpm: Any, index: int | None) -> Any:
        if index is None:
            return self._pytss.TPM2B_PUBLIC.parse(_OWN_TEMPLATE, objectAttributes=_OWN_ATTRIBUTES)
        area, _ = self._pytss.TPMT_PUBLIC.unmarshal(self._read_nv(tpm, index))
        return self._pytss.TPM2B_PUBLIC(publicArea=area)

    def _read_pcrs(self, tpm: Any) -> dict[int, bytes]:
        """All values of the bank; a TPM hands out at most eight at a time."""
        values: dict[int, bytes] = {}
        for first in range(0, PCRS, 8):
            numbers = range(first, first + 8)
            _, _, digests = tpm.pcr_read(f"{BANK}:{','.join(map(str, numbers))}")
            values.update(zip(numbers, (bytes(digest) for digest in digests), strict=True))
        return values

    def _handles(self, tpm: Any, first: int) -> list[int]:
        capability = self._pytss.TPM2_CAP.HANDLES
        _, found = tpm.get_capability(capability, first, _HANDLE_LIMIT)
        return [int(handle) for handle in found.data.handles]

    def _read_certificate(self, tpm: Any, index: int | None, there: set[int]) -> bytes | None:
        if index is None or index not in there:
            return None
        try:
            return cut_certificate(self._read_nv(tpm, index))
        except MalformedInput:
            return None  # The index is defined, but nobody has put a certificate into it.

    def _read_nv(self, tpm: Any, index: int) -> bytes:
        handle = tpm.tr_from_tpmpublic(index)
        size = min(int(tpm.nv_read_public(handle)[0].nvPublic.dataSize), _NV_LIMIT_BYTES)
        owner = self._pytss.ESYS_TR.OWNER
        content = b""
        while len(content) < size:
            count = min(_NV_CHUNK_BYTES, size - len(content))
            content += bytes(tpm.nv_read(handle, count, offset=len(content), auth_handle=owner))
        return content

    def _replayable_log(self, verified: VerifiedTpmQuote) -> bytes | None:
        if self._event_log is None:
            return None
        try:
            with self._event_log.open("rb") as file:
                log = file.read(MAX_LOG_BYTES)
            replay_to_pcrs(log, verified.pcrs)
        except (OSError, MalformedInput, VerificationError):
            return None
        return log


def _load_pytss() -> Any:
    try:
        return importlib.import_module("tpm2_pytss")
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            "a TPM's evidence needs tpm2-pytss and the system's tpm2-tss libraries",
            hint='install the extra: pip install "cloister[tpm]"',
        ) from error


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
