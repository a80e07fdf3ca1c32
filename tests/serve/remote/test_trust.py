"""Tests of ``cloister.serve.remote.trust`` and ``same``."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attest.appraisal import appraise
from cloister.attest.attester import pick_attester
from cloister.attest.verifier import verify_evidence
from cloister.errors import ConfigError, PolicyDenied, VerificationError
from cloister.serve.remote.same import MEASUREMENTS
from cloister.serve.remote.trust import confinement, frontend_trust, host_digest, host_trust, with_contents
from cloister.settings import Settings, load_settings, settings_digest
from tests.serve.remote.sides import attester, make_platform


def settings(**flags: Any) -> Settings:
    """Settings with these flags; two underscores stand for the dot."""
    return load_settings(None, {}, {name.replace("__", "."): value for name, value in flags.items()})


def test_open_mode_needs_a_token(tmp_path: Path) -> None:
    """Without a token nobody could join in open mode, so that neither side starts."""
    for make in (frontend_trust, host_trust):
        with pytest.raises(ConfigError, match="join token only"):
            make(settings(serve__mode="open"), None)
    (tmp_path / "short").write_text("hunter2\n")
    with pytest.raises(ConfigError, match="7 characters"):
        host_trust(settings(serve__mode="open", worker__token=str(tmp_path / "short")), None)
    (tmp_path / "token").write_text("0123456789abcdef\n")
    own, wanted = host_trust(settings(serve__mode="open", worker__token=str(tmp_path / "token")), None)
    assert (own.token, wanted.token, wanted.mode) == (b"0123456789abcdef",) * 2 + ("open",)


def test_content_is_measured_not_names(tmp_path: Path) -> None:
    """Another reference value gives another digest; the same content under another name does not."""
    one, other = tmp_path / "one.toml", tmp_path / "other.toml"
    one.write_text('[tdx]\nmr_td = ["' + "00" * 48 + '"]\n')
    shutil.copy(one, other)
    flag, digests = "serve__worker_reference_values", []
    for file in (one, other):
        digests.append(settings_digest(with_contents(settings(**{flag: str(file)}))))
    other.write_text('[tdx]\nmr_td = ["' + "11" * 48 + '"]\n')
    changed = settings_digest(with_contents(settings(**{flag: str(other)})))
    assert digests[0] == digests[1] != changed
    hosts = [
        host_digest(with_contents(settings(worker__reference_values=str(file)))) for file in (one, other)
    ]
    assert hosts[0] != hosts[1]
    with pytest.raises(ConfigError, match="cannot read"):
        with_contents(settings(**{flag: str(tmp_path / "none")}))


def test_default_is_the_same_code_on_a_trusted_root(tmp_path: Path) -> None:
    """By default a peer has this machine's measurement, and an own TEE that nobody trusts is an error."""
    platform = make_platform(tmp_path / "tee")
    root = platform.root.public_bytes(Encoding.PEM).decode()
    flags = {"attest__attester": "simulated-tdx", "attest__simulated_platform": str(tmp_path / "tee")}
    mine = pick_attester(settings(**flags).attest, mr_config_id=bytes(48))
    with pytest.raises(VerificationError):
        frontend_trust(settings(**flags), mine)
    _, wanted = frontend_trust(settings(serve__worker_simulated_root=root, **flags), mine)
    assert wanted.reference_values is not None
    now = datetime.now(UTC)
    for maker, fine in ((mine, True), (attester(platform), False)):
        claims = verify_evidence(
            "tdx", maker.get_evidence(bytes(64)).raw, maker.get_endorsements(), now, roots=[platform.root]
        )
        if fine:
            appraise(claims, wanted.reference_values, now)
        else:
            with pytest.raises(PolicyDenied, match="mr_td"):
                appraise(claims, wanted.reference_values, now)


def test_settings_that_identify_are_not_compared() -> None:
    """No field that shows a machine's own settings is among those that must be equal."""
    assert not {"mr_config_id", "host_data"} & {name for names in MEASUREMENTS.values() for name in names}


def test_confinement() -> None:
    """What must be alike on both sides is the mode and whatever configures the sandbox."""
    assert '"mode":"open"' in confinement(settings(serve__mode="open").serve)
    assert "http_port" not in confinement(settings().serve)
