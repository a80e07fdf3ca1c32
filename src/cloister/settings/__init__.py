"""One frozen ``Settings``: command-line flag over environment over TOML file over default.

The file has one table per section (``[serve]``, ``[keys]``, ``[cache]``, ``[attest]``, ``[collateral]``). The
environment spells a setting ``CLOISTER_<SECTION>_<NAME>``. An unknown name is an error in each of the three
places, so that a typing mistake cannot silently weaken a server. The effective settings of a protected server
are part of what it proves: ``settings_digest`` goes into its evidence.
"""

from cloister.settings.loading import load_settings, measured_settings, settings_digest
from cloister.settings.sections import (
    AttestSettings,
    CacheSettings,
    CollateralSettings,
    KeysSettings,
    ServeSettings,
    Settings,
    TorchSettings,
    WorkerSettings,
)

__all__ = [
    "AttestSettings",
    "CacheSettings",
    "CollateralSettings",
    "KeysSettings",
    "ServeSettings",
    "Settings",
    "TorchSettings",
    "WorkerSettings",
    "load_settings",
    "measured_settings",
    "settings_digest",
]
