"""Where a broker's policy and reference values come from: a file that its settings pin, or what was set.

A file wins: who pins a policy by a file does not want it replaced over the network.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

from cloister.attest.appraisal import ReferenceValues
from cloister.errors import ConfigError
from cloister.kbs.database import Database
from cloister.kbs.documents import REFERENCE_VALUES, RESOURCE_POLICY, StoredDocument
from cloister.kbs.reload import ReloadedFile
from cloister.kbs.trust import reference_source
from cloister.policy.release import ReleasePolicy, load_release_policy, parse_release_policy
from cloister.settings import KeysSettings


def policy_source(settings: KeysSettings, database: Database) -> Callable[[], ReleasePolicy]:
    """The release policy as it is at each call: the file's, the one that was set, or the one that ships."""
    if settings.policy:
        source = ReloadedFile(Path(settings.policy), load_release_policy)
        source.get()
        return source.get
    shipped = load_release_policy()
    return StoredDocument(database, RESOURCE_POLICY, parse_release_policy, lambda: shipped).get


def reference_values_source(settings: KeysSettings, database: Database) -> Callable[[], ReferenceValues]:
    """The reference values as they are at each call: the file's, or those that were set, or a ConfigError."""
    if settings.reference_values:
        return reference_source(settings.reference_values)
    none = reference_source("")
    return StoredDocument(database, REFERENCE_VALUES, parse_reference_values, none).get


def parse_reference_values(text: str) -> ReferenceValues:
    """Reference values from TOML text.

    Raises:
        ConfigError: not TOML, or a field that is unknown or of the wrong form.
    """
    try:
        return ReferenceValues.from_mapping(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"reference values: not TOML: {error}") from error
