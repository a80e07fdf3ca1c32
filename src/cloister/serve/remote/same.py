"""The default of who may join: whatever was measured as this machine was."""

from __future__ import annotations

from cloister.attest.appraisal import ReferenceValues
from cloister.attest.model import Claims
from cloister.attest.verifier import find_scheme
from cloister.errors import ConfigError

MEASUREMENTS = {
    "tdx": ("mr_td", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mr_owner", "mr_owner_config"),
    "sgx": ("mr_enclave", "mr_signer", "attributes"),
    "sev-snp": ("measurement",),
    "nitro": ("pcr0", "pcr1", "pcr2"),
}
"""Fields that say which code was started. Those that say with which settings are not among them: the two
sides have different ones, and each shows those that matter (``proof``)."""


def same_as(own: Claims) -> ReferenceValues:
    """Reference values that accept machines whose code was measured as ``own``; all else as usual.

    A debug TEE or an outdated TCB stays refused. A simulated platform is accepted by a simulated one only.

    Raises:
        ConfigError: it cannot be told from this kind of evidence which code was started.
    """
    names = MEASUREMENTS.get(own.scheme)
    if names is None:
        raise ConfigError(
            f"{own.scheme} evidence has no default of who may join",
            hint="set serve.worker_reference_values, and worker.reference_values on the other side",
        )
    rules = {rule.name: rule for rule in find_scheme(own.scheme).rules}
    table: dict[str, list[str]] = {}
    for name in names:
        value = rules[name].get(own)  # type: ignore[attr-defined]
        table[name] = [value.hex()]
    return ReferenceValues.from_mapping({"allow_simulated": own.simulated, own.scheme: table})
