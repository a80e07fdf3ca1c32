"""Evidence from the Linux kernel: configfs-tsm, one interface for TDX and SEV-SNP guests.

One report is one folder below ``/sys/kernel/config/tsm/report``. Making the folder makes its attributes:

=================== ====== ========================================================================
attribute           mode   meaning
=================== ====== ========================================================================
inblob              write  up to 64 bytes that the report shall carry
outblob             read   the report; reading it makes the hardware (and its quoting service) work
auxblob             read   SEV-SNP: the host's certificate table; may be empty, or not be there
provider            read   ``tdx_guest`` or ``sev_guest``
privlevel           write  SEV-SNP: VMPL that the report is for, not below ``privlevel_floor``
privlevel_floor     read   SEV-SNP: lowest VMPL of this guest (above 0 under an SVSM)
generation          read   counts the writes to the folder's attributes
=================== ====== ========================================================================

A write to a binary attribute takes effect when the file is closed, where an error cannot be reported: only
the generation shows that it did, and that no other process wrote in between. Outblob and auxblob are of one
report exactly if the generation has not changed. EBUSY and EINTR mean that the quoting service works for
somebody else, or was interrupted. In all these cases another attempt is made, with a new folder. Removing the
folder releases the report.

Source: Linux, Documentation/ABI/testing/configfs-tsm-report; drivers/virt/coco (tsm.c, tdx-guest, sev-guest).
"""

from __future__ import annotations

import errno
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cloister.attest.attesters.report_data import check_report_data
from cloister.attest.binding import REPORT_DATA_BYTES
from cloister.attest.model import Endorsements, Evidence
from cloister.attest.snp.endorsements import SnpEndorsements
from cloister.attest.snp.table import parse_table
from cloister.errors import ConfigError, KeyUnavailable

TSM_REPORTS = Path("/sys/kernel/config/tsm/report")
SEV_GUEST = "sev_guest"
PROVIDERS = {"tdx_guest": "tdx", SEV_GUEST: "sev-snp"}
ATTEMPTS = 5
FIRST_PAUSE_S = 0.05
_TRANSIENT = {errno.EBUSY, errno.EINTR, errno.EAGAIN}


class _TryAgain(Exception):
    """This attempt's report cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class _Report:
    outblob: bytes
    auxblob: bytes


class ConfigfsAttester:
    """Obtains quotes of this machine from the kernel.

    Args:
        reports: folder of the kernel's interface.
        pause: waits so many seconds between two attempts.
    Raises:
        ConfigError: the kernel has no provider, or one whose evidence is not supported.
        KeyUnavailable: the interface does not work.
    """

    def __init__(self, reports: Path = TSM_REPORTS, *, pause: Callable[[float], None] = time.sleep) -> None:
        self._reports = reports
        self._pause = pause
        self._certificates: bytes | None = None
        with self._entry() as entry:
            try:
                provider = _read_provider(entry)
            except _TryAgain as reason:
                raise KeyUnavailable(f"cannot read the kernel's {reason}") from reason
        if provider not in PROVIDERS:
            raise ConfigError(
                f"this machine's evidence comes from {provider!r}, supported are {', '.join(PROVIDERS)}"
            )
        self._provider = provider
        self.scheme = PROVIDERS[provider]

    def get_evidence(self, report_data: bytes) -> Evidence:
        """A quote or report over 64 bytes of ``report_data``.

        Raises:
            KeyUnavailable: the kernel or the quoting service failed, or other processes kept interfering.
        """
        report = self._report(check_report_data(report_data))
        self._certificates = report.auxblob
        return Evidence(self.scheme, report.outblob)

    def get_endorsements(self) -> Endorsements | None:
        """SEV-SNP: the certificates that the host hands out, those of the last evidence; None if it has none.

        TDX: None, the kernel has no collateral.

        Raises:
            MalformedInput: the host's certificate table is damaged.
        """
        if self._provider != SEV_GUEST:
            return None
        if self._certificates is None:
            self._certificates = self._report(bytes(REPORT_DATA_BYTES)).auxblob
        if not any(self._certificates):
            return None
        return SnpEndorsements().completed_by(parse_table(self._certificates))

    def _report(self, report_data: bytes) -> _Report:
        pause_s = FIRST_PAUSE_S
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._entry() as entry:
                    return self._read_report(entry, report_data)
            except _TryAgain as reason:
                if attempt == ATTEMPTS:
                    raise KeyUnavailable(
                        f"kernel made no usable report in {ATTEMPTS} attempts: {reason}",
                        hint="is another process asking for reports all the time?",
                    ) from reason
            self._pause(pause_s)
            pause_s *= 2
        raise AssertionError("the last attempt returns or raises")

    def _read_report(self, entry: Path, report_data: bytes) -> _Report:
        expected = _read_generation(entry)
        floor = entry / "privlevel_floor"
        if self._provider == SEV_GUEST and floor.exists():
            _write(entry / "privlevel", _read(floor))
            expected += 1
        _write(entry / "inblob", report_data)
        expected += 1
        _check_generation(entry, expected)
        outblob = _read(entry / "outblob")
        auxiliary = entry / "auxblob"
        auxblob = _read(auxiliary) if auxiliary.exists() else b""
        provider = _read_provider(entry)
        _check_generation(entry, expected)
        if provider != self._provider:
            raise KeyUnavailable(f"evidence comes from {provider!r}, expected {self._provider!r}")
        if not outblob:
            raise KeyUnavailable("kernel gave an empty report", hint="is the quoting service running?")
        return _Report(outblob, auxblob)

    @contextmanager
    def _entry(self) -> Iterator[Path]:
        entry = self._reports / f"cloister-{secrets.token_hex(8)}"
        try:
            entry.mkdir()
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise ConfigError("the kernel has configfs-tsm, but no TEE behind it") from error
            raise KeyUnavailable(
                f"cannot make a report below {self._reports}: {error.strerror}",
                hint="root's rights are needed",
            ) from error
        try:
            yield entry
        finally:
            entry.rmdir()


def _check_generation(entry: Path, expected: int) -> None:
    found = _read_generation(entry)
    if found < expected:
        raise _TryAgain(f"kernel did not take what was written: generation {found}, expected {expected}")
    if found > expected:
        raise _TryAgain(f"another process wrote to this report: generation {found}, expected {expected}")


def _read_provider(entry: Path) -> str:
    return _read(entry / "provider").decode("ascii", "replace").strip()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno in _TRANSIENT:
            raise _TryAgain(f"{path.name}: {error.strerror}") from error
        raise KeyUnavailable(f"cannot read the kernel's {path.name}: {error.strerror}") from error


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        if error.errno in _TRANSIENT:
            raise _TryAgain(f"{path.name}: {error.strerror}") from error
        raise KeyUnavailable(f"kernel refused {path.name}: {error.strerror}") from error


def _read_generation(entry: Path) -> int:
    text = _read(entry / "generation")
    try:
        return int(text)
    except ValueError as error:
        raise KeyUnavailable("kernel's report generation is not a number") from error
