"""``cloister keys``: administration on the broker's own machine, exit codes and one-line errors."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from cloister.cli.main import app
from cloister.cli.output import console
from cloister.crypto.keys import SecretKey
from cloister.errors import CloisterError
from cloister.kbs.admin import check_admin_token
from cloister.kbs.audit import read_audit_log, verify_audit_log
from cloister.kbs.owner import SealRequest, load_or_create_signer, seal_model
from cloister.kbs.owner_files import load_or_make_ed25519
from cloister.kbs.protocol import ResourcePath
from cloister.kbs.state import open_administration, open_state
from cloister.seal.reader import open_sealed
from cloister.seal.signing import TrustedSigners
from cloister.settings import KeysSettings

URI = "kbs:///models/digits/1.0"
CLAIMS = {
    "tee": "tdx", "tier": "affirming", "simulated": False, "debug": False, "tcb_status": "UpToDate",
    "tcb_date": "2026-01-01", "advisory_ids": [], "hardware_id": "00", "mr_td": "aa" * 48,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A broker that has been started once."""
    open_state(KeysSettings(folder=str(tmp_path / "keys")), datetime.now(UTC)).close()
    return tmp_path / "keys"


def run(folder: Path | None, *arguments: str, stdin: bytes | None = None) -> Any:
    """The JSON that a command prints; its error if it fails."""
    words = ["keys", *arguments, "--json", *(["--folder", str(folder)] if folder else [])]
    result = CliRunner().invoke(app, words, input=stdin)
    if isinstance(result.exception, CloisterError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def fails(folder: Path | None, code: int, *arguments: str) -> str:
    """The one-line error of a command that fails with an exit code."""
    with pytest.raises(CloisterError) as caught:
        run(folder, *arguments)
    assert caught.value.exit_code == code
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_keys_life(folder: Path) -> None:
    """Add, list, show, revoke, restore, delete: each shows in the next, and all are recorded."""
    assert run(folder, "add", URI, "--from-file", "-", stdin=b"one")["version"] == 1
    assert run(folder, "add", URI, "--generate")["version"] == 2
    assert [row["bytes"] for row in run(folder, "list")] == [3, 32]
    run(folder, "revoke", f"{URI}?version=1", "--reason", "leaked")
    run(folder, "minimum", URI, "2")
    facts = run(folder, "show", URI)
    assert [v["standing"] for v in facts["versions"]] == ["revoked: leaked", "released"]
    run(folder, "restore", f"{URI}?version=1")
    assert run(folder, "show", URI)["versions"][0]["standing"] == "old"
    run(folder, "delete", URI)
    settings = KeysSettings(folder=str(folder))
    verify_audit_log(settings)
    kinds = [entry["kind"] for entry in read_audit_log(settings)]
    assert kinds == ["stored", "stored", "revoked", "minimum", "restored", "deleted"]
    assert {entry["subject"] for entry in read_audit_log(settings)} == {"local"}


def test_kek_rotation(folder: Path) -> None:
    """``rotate --kek`` re-wraps everything and says so."""
    run(folder, "add", URI, "--generate")
    before = run(folder, "show", URI)["versions"][0]["kek"]
    done = run(folder, "rotate", "--kek")
    assert (done["rewrapped"], done["retired"]) == (1, True)
    assert before != run(folder, "show", URI)["versions"][0]["kek"] == done["kek_id"]


def sealed(folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A container of this broker's, and its signer's file."""
    signer, source = tmp_path / "signer.key", tmp_path / "model.bin"
    source.write_bytes(b"weights" * 1000)

    class Local:
        def __init__(self, administration: Any) -> None:
            self._administration = administration

        def put_version(self, uri: str, data: bytes) -> int:
            return int(self._administration.store(ResourcePath.from_uri(uri), data).version)

        def set_minimum(self, uri: str, version: int) -> int:
            return int(self._administration.set_minimum(ResourcePath.from_uri(uri), version))

    with open_administration(KeysSettings(folder=str(folder))) as administration:
        request = SealRequest(source, "digits", "1.0", 1, URI)
        container = seal_model(
            request,
            admin=Local(administration),
            signer=load_or_create_signer(signer),
            out=tmp_path / "old.sealed",
        )
    return container, signer


def test_data_key_rotation_seals_anew(folder: Path, tmp_path: Path) -> None:
    """The model is the same under a new key and the next sequence; the old key's version is ended."""
    container, signer = sealed(folder, tmp_path)
    new = tmp_path / "new.sealed"
    done = run(
        folder, "rotate", URI, "--container", str(container), "--signer", str(signer), "--out", str(new)
    )
    assert done["sequence"] == 2
    with open_administration(KeysSettings(folder=str(folder))) as administration:
        facts = administration.show(ResourcePath.from_uri(URI))
        assert [v.standing for v in facts.versions] == ["old", "released"]
        key = SecretKey(administration.take_key(ResourcePath.from_uri(f"{URI}?version=2"), "test"))
    trusted = TrustedSigners([load_or_create_signer(signer).public])
    with open_sealed(new, key=key, trusted=trusted) as plain:
        assert plain.readall() == b"weights" * 1000
        assert (plain.header.sequence, plain.header.key_version) == (2, 2)
    with pytest.raises(CloisterError):
        open_sealed(container, key=key, trusted=trusted).readall()


def test_another_keys_container_is_refused(folder: Path, tmp_path: Path) -> None:
    """A container is sealed anew only under its own key, and only if its signer is ours."""
    container, signer = sealed(folder, tmp_path)
    options = ("--container", str(container), "--out", str(tmp_path / "n"), "--signer")
    assert "is sealed under" in fails(folder, 2, "rotate", "kbs:///a/b/c", *options, str(signer))
    other = tmp_path / "other.key"
    load_or_create_signer(other)
    fails(folder, 3, "rotate", URI, *options, str(other))
    assert not (tmp_path / "n").exists()


def test_recovery(folder: Path, tmp_path: Path) -> None:
    """Split and combine give the same KEK; neither overwrites anything."""
    made = run(folder, "recovery", "split", "-k", "2", "-n", "3", "-o", str(tmp_path / "shares"))
    kek = tmp_path / "again" / "kek"
    done = run(None, "recovery", "combine", *made["shares"][1:], "-o", str(kek))
    assert done["kek"] == made["kek"]
    assert kek.read_bytes() == (folder / "kek").read_bytes()
    assert (kek.stat().st_mode & 0o777, Path(made["shares"][0]).stat().st_mode & 0o777) == (0o600, 0o600)
    fails(None, 2, "recovery", "combine", *made["shares"], "-o", str(kek))
    fails(None, 4, "recovery", "combine", made["shares"][0], "-o", str(tmp_path / "x"))
    fails(folder, 2, "recovery", "split", "-k", "2", "-n", "3", "-o", str(tmp_path / "shares"))


def test_tokens_have_the_asked_role(folder: Path, tmp_path: Path) -> None:
    """A token is owner-only, of one role, and ends when it was asked to."""
    file = tmp_path / "auditor.token"
    run(folder, "token", "issue", "--role", "auditor", "--ttl-days", "1", "-o", str(file))
    public = load_or_make_ed25519(folder / "admin.key").public_key()
    now = datetime.now(UTC)
    assert check_admin_token(file.read_text(), public, now, needs="audit") == "auditor"
    with pytest.raises(CloisterError):
        check_admin_token(file.read_text(), public, now, needs="resources")
    with pytest.raises(CloisterError):
        check_admin_token(file.read_text(), Ed25519PrivateKey.generate().public_key(), now, needs="audit")
    assert file.stat().st_mode & 0o777 == 0o600
    assert "unknown role" in fails(folder, 2, "token", "issue", "--role", "king", "-o", str(tmp_path / "k"))


def test_policy_test_explains(folder: Path, tmp_path: Path) -> None:
    """A refusal names the closest policy, the condition that does not hold, and what was found instead."""
    policy, claims = tmp_path / "p.cedar", tmp_path / "claims.json"
    policy.write_text(
        '@id("digits") permit (principal, action == Action::"release", resource)'
        f' when {{ context has mr_td && context.mr_td == "{"bb" * 48}" }} when {{ !context.debug }};'
    )
    claims.write_text(json.dumps(CLAIMS))
    asked = ("policy", "test", "--resource", URI, "--claims", str(claims))
    reason = fails(folder, 3, *asked, "--policy", str(policy))
    assert "no policy permits; closest: digits, mr_td differs: " in reason
    assert 'mr_td is "aaaa' in reason
    assert "debug" not in reason
    assert run(folder, *asked)["allowed"] is True
    assert "no-debug-tee" in fails(
        folder, 3, *asked[:-1], str(_write(tmp_path / "d", {**CLAIMS, "debug": True}))
    )
    assert "no policy permits" in fails(folder, 3, *asked, "--old")


def _write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def test_policies_are_set_checked_and_shown(folder: Path, tmp_path: Path) -> None:
    """A valid policy decides at once; a broken one is refused and changes nothing."""
    good, bad = tmp_path / "good.rego", tmp_path / "bad.cedar"
    good.write_text("package policy\nallow := false\n")
    bad.write_text("permit (")
    assert "no-simulated-tee" in run(folder, "policy", "show")["policy"]
    assert run(None, "policy", "check", str(good))["language"] == "rego"
    fails(None, 2, "policy", "check", str(bad))
    run(folder, "policy", "set", str(good))
    fails(folder, 2, "policy", "set", str(bad))
    assert run(folder, "policy", "show")["policy"] == good.read_text()
    claims = _write(tmp_path / "c.json", CLAIMS)
    assert "data.policy.allow" in fails(
        folder, 3, "policy", "test", "--resource", URI, "--claims", str(claims)
    )


def test_reference_values_are_set_checked_and_shown(folder: Path, tmp_path: Path) -> None:
    """Valid reference values hold at once; broken ones are refused; none at all is said."""
    file = tmp_path / "r.toml"
    file.write_text(f'[tdx]\nmr_td = ["{"11" * 48}"]\n')
    assert "every attestation is refused" in fails(folder, 2, "reference", "show")
    assert run(None, "reference", "check", str(file))["schemes"] == ["tdx"]
    run(folder, "reference", "set", str(file))
    assert run(folder, "reference", "show")["reference_values"] == file.read_text()
    file.write_text("[tdx]\nmr_dt = []\n")
    fails(folder, 2, "reference", "set", str(file))


@pytest.mark.parametrize(
    "arguments",
    [
        ("add", URI),
        ("add", URI, "--generate", "--from-file", "x"),
        ("add", URI, "--from-file", "/nonexistent"),
        ("rotate",),
        ("rotate", URI, "--kek"),
        ("rotate", URI),
        ("show", URI, "--broker", "https://127.0.0.1:1"),
        ("policy", "test", "--resource", URI),
    ],
)
def test_wrong_usage(folder: Path, arguments: tuple[str, ...]) -> None:
    """Options that contradict each other or are missing are exit code 2, on one line."""
    fails(folder, 2, *arguments)


def test_a_folder_without_a_broker(tmp_path: Path) -> None:
    """Administration makes nothing: where no broker was started it says so."""
    assert "no key broker" in fails(tmp_path / "none", 2, "list")
    assert not (tmp_path / "none").exists()
    assert "not found" in fails_after_start(tmp_path)


def fails_after_start(tmp_path: Path) -> str:
    """The error for a resource that is not there."""
    open_state(KeysSettings(folder=str(tmp_path / "k")), datetime.now(UTC)).close()
    return fails(tmp_path / "k", 3, "show", URI)


def test_reasons_are_shown_as_they_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody has written into the log neither formats it nor moves the terminal's cursor."""
    monkeypatch.setattr(console, "width", 200)
    run(folder, "add", URI, "--generate")
    run(folder, "revoke", URI, "--reason", "[/bold] lost \x1b[2J")
    for command in (("show", URI), ("audit", "show")):
        shown = CliRunner().invoke(app, ["keys", *command, "--folder", str(folder)])
        assert shown.exit_code == 0, shown.exception
        assert "[/bold] lost" in shown.output
        assert "\x1b" not in shown.output


def test_an_export_that_fails_leaves_no_file(folder: Path, tmp_path: Path) -> None:
    """The next attempt can have the same name."""
    target = tmp_path / "audit.jsonl"
    words = ["keys", "audit", "export", str(target), "--folder", str(folder)]
    assert isinstance(CliRunner().invoke(app, [*words, "--after", "99"]).exception, CloisterError)
    assert not target.exists()
    assert CliRunner().invoke(app, words).exit_code == 0
