"""Evidence of an SGX enclave that runs under Gramine: pseudo-files below ``/dev/attestation``.

================= ====== ==========================================================
file              mode   meaning
================= ====== ==========================================================
attestation_type  read   ``dcap``, ``epid`` or ``none``: the manifest's
                         ``sgx.remote_attestation``
user_report_data  write  64 bytes that the next quote shall carry
quote             read   reading it makes a quote over them
================= ====== ==========================================================

Both files are the whole enclave's: a write by another of its threads changes what the quote carries. So one
quote is made at a time, and it is looked at before it is handed on.

Source: Gramine documentation, "Attestation and Secret Provisioning", low-level interface.
"""

from __future__ import annotations

import threading
from pathlib import Path

from cloister.attest.attesters.report_data import check_report_data
from cloister.attest.dcap.quote import TEE_TYPE_SGX, parse_quote
from cloister.attest.model import Endorsements, Evidence
from cloister.errors import ConfigError, KeyUnavailable, MalformedInput

DEV_ATTESTATION = Path("/dev/attestation")
DCAP = "dcap"
_REPORT_DATA = slice(320, 384)
_lock = threading.Lock()


class GramineAttester:
    """Obtains quotes of this enclave from Gramine.

    Args:
        folder: of the pseudo-files.
    Raises:
        ConfigError: the enclave attests in another way than DCAP, or not at all.
        KeyUnavailable: the interface does not work.
    """

    scheme = "sgx"

    def __init__(self, folder: Path = DEV_ATTESTATION) -> None:
        self._folder = folder
        found = read_attestation_type(folder)
        if found != DCAP:
            raise ConfigError(
                f"this enclave's attestation type is {found!r}, expected {DCAP!r}",
                hint='set sgx.remote_attestation = "dcap" in the Gramine manifest',
            )

    def get_evidence(self, report_data: bytes) -> Evidence:
        """A quote over 64 bytes of ``report_data``.

        Raises:
            KeyUnavailable: Gramine or the quoting service failed, or the quote carries other data.
        """
        check_report_data(report_data)
        with _lock:
            try:
                (self._folder / "user_report_data").write_bytes(report_data)
                raw = (self._folder / "quote").read_bytes()
            except OSError as error:
                raise KeyUnavailable(
                    f"Gramine made no quote: {error.strerror}", hint="is the quoting service (aesmd) running?"
                ) from error
        try:
            quote = parse_quote(raw)
        except MalformedInput as error:
            raise KeyUnavailable(f"Gramine made no usable quote: {error.message}") from error
        if quote.tee_type != TEE_TYPE_SGX or quote.body[_REPORT_DATA] != report_data:
            raise KeyUnavailable("Gramine's quote carries other data than was asked for")
        return Evidence(self.scheme, raw)

    def get_endorsements(self) -> Endorsements | None:
        """None: Gramine has no collateral; the verifier obtains it."""
        return None


def read_attestation_type(folder: Path) -> str:
    """What Gramine says that the enclave can do; KeyUnavailable if the file cannot be read."""
    try:
        return (folder / "attestation_type").read_bytes()[:40].decode("ascii", "replace").strip()
    except OSError as error:
        raise KeyUnavailable(f"cannot read Gramine's attestation_type: {error.strerror}") from error
