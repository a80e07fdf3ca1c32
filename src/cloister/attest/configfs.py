"""Evidence from the Linux kernel: configfs-tsm, one interface for TDX and SEV-SNP guests.

One report is one folder below ``/sys/kernel/config/tsm/report``. Making the folder makes its attributes:

============ ====== ========================================================================
attribute    mode   meaning
============ ====== ========================================================================
inblob       write  up to 64 bytes that the report shall carry
outblob      read   the report; reading it makes the hardware (and its quoting service) work
provider     read   ``tdx_guest`` or ``sev_guest``
generation   read   counts the writes to the folder's attributes
============ ====== ========================================================================

The generation shows whether another process wrote to the same folder in between. Removing the folder
releases the report.

Source: Linux, Documentation/ABI/testing/configfs-tsm-report.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloister.attest.binding import REPORT_DATA_BYTES
from cloister.attest.model import Endorsements, Evidence
from cloister.errors import ConfigError, KeyUnavailable, MalformedInput

TSM_REPORTS = Path("/sys/kernel/config/tsm/report")
PROVIDERS = {"tdx_guest": "tdx"}


class ConfigfsAttester:
    """Obtains quotes of this machine from the kernel.

    Args:
        reports: folder of the kernel's interface.
    Raises:
        ConfigError: the kernel's provider is one whose evidence is not supported.
        KeyUnavailable: the interface does not work.
    """

    def __init__(self, reports: Path = TSM_REPORTS) -> None:
        self._reports = reports
        with self._entry() as entry:
            provider = _read(entry / "provider").decode("ascii", "replace").strip()
        if provider not in PROVIDERS:
            raise ConfigError(
                f"this machine's evidence comes from {provider!r}, supported are {', '.join(PROVIDERS)}"
            )
        self._provider = provider
        self.scheme = PROVIDERS[provider]

    def get_evidence(self, report_data: bytes) -> Evidence:
        """A quote over 64 bytes of ``report_data``.

        Raises:
            KeyUnavailable: the kernel or the quoting service failed, or another process interfered.
        """
        if len(report_data) != REPORT_DATA_BYTES:
            raise MalformedInput(f"report_data has {REPORT_DATA_BYTES} bytes, found {len(report_data)}")
        with self._entry() as entry:
            before = _read_generation(entry)
            try:
                (entry / "inblob").write_bytes(report_data)
            except OSError as error:
                raise KeyUnavailable(f"kernel refused report data: {error.strerror}") from error
            raw = _read(entry / "outblob")
            provider = _read(entry / "provider").decode("ascii", "replace").strip()
            after = _read_generation(entry)
        if after != before + 1:
            raise KeyUnavailable(
                f"another process wrote to this report: generation {after}, expected {before + 1}"
            )
        if provider != self._provider:
            raise KeyUnavailable(f"evidence comes from {provider!r}, expected {self._provider!r}")
        if not raw:
            raise KeyUnavailable("kernel gave an empty report", hint="is the quoting service running?")
        return Evidence(self.scheme, raw)

    def get_endorsements(self) -> Endorsements | None:
        """None: the kernel has no collateral; the verifier obtains it."""
        return None

    @contextmanager
    def _entry(self) -> Iterator[Path]:
        entry = self._reports / f"cloister-{secrets.token_hex(8)}"
        try:
            entry.mkdir()
        except OSError as error:
            raise KeyUnavailable(
                f"cannot make a report below {self._reports}: {error.strerror}",
                hint="root's rights are needed",
            ) from error
        try:
            yield entry
        finally:
            entry.rmdir()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyUnavailable(f"cannot read the kernel's {path.name}: {error.strerror}") from error


def _read_generation(entry: Path) -> int:
    text = _read(entry / "generation")
    try:
        return int(text)
    except ValueError as error:
        raise KeyUnavailable("kernel's report generation is not a number") from error
