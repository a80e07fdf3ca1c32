"""`cloister evidence`, and `cloister verify` of files: what they print and how they exit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cloister.attest.attesters.simulated import SimulatedTdxAttester
from cloister.attest.service import LoadedModel, ServiceIdentity, make_bundle
from cloister.attest.simulated import SimulatedPlatform, SimulatedSgxPlatform
from cloister.cli.main import main
from tests.vectors import vector

NOW = datetime.now(UTC)
MR_TD, MR_CONFIG_ID, NONCE = bytes(range(48)), bytes(48), bytes(range(32))


@dataclass
class Done:
    """What one command line printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its output as a document."""
        return json.loads(self.out)


@pytest.fixture
def cloister(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs one command line in this process."""

    def run(*arguments: str | Path) -> Done:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        code = caught.value.code
        return Done(code if isinstance(code, int) else 1, captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated platform, with reference values that accept what this package measures."""
    place = tmp_path_factory.mktemp("platform") / "p"
    SimulatedSgxPlatform.create(place, NOW)
    return place


@pytest.fixture
def accepted(tmp_path: Path) -> Path:
    """Reference values that accept simulated domains with ``MR_TD``."""
    return written(tmp_path, "accepted", f'allow_simulated = true\n[tdx]\nmr_td = ["{MR_TD.hex()}"]\n')


@pytest.fixture
def quote(folder: Path) -> bytes:
    """A quote of the platform over 64 bytes."""
    return SimulatedPlatform.load(folder).quote(bytes(range(64)), mr_td=MR_TD)


def written(folder: Path, name: str, text: str | bytes) -> Path:
    """A file with this content."""
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_own_evidence_is_accepted(cloister: Callable[..., Done], folder: Path, tmp_path: Path) -> None:
    """What `evidence` writes, `verify` reads: accepted, bound to the nonce, and said to be simulated."""
    file = tmp_path / "evidence.json"
    source = ("--attester", "simulated-tdx", "--simulated-platform", folder)
    made = cloister("evidence", "--nonce", NONCE.hex(), *source, "--out", file, "--json")
    assert (made.code, made.json["scheme"]) == (0, "tdx")
    mr_td = cloister("simulate", "measure", "--json").json["mr_td"]
    references = written(tmp_path, "r", f'allow_simulated = true\n[tdx]\nmr_td = ["{mr_td}"]\n')
    trust = ("-r", references, "--simulated-root", folder / "root.pem")
    done = cloister("verify", file, "--nonce", NONCE.hex(), *trust, "--json")
    assert (done.code, done.json["accepted"], done.json["simulated"]) == (0, True, True)
    assert done.json["bound"]["nonce"] == "the given one"
    people = cloister("verify", file, *trust)
    assert people.code == 0
    assert "SIMULATED" in people.out
    assert "replay" in people.out, "no nonce was given, and it says so"
    assert cloister("verify", file, "--nonce", "ab" * 32, *trust).code == 3


@pytest.mark.parametrize("attester", ["simulated-tdx", "simulated-sgx"])
def test_evidence_goes_to_standard_output(
    cloister: Callable[..., Done], folder: Path, tmp_path: Path, attester: str
) -> None:
    """Without --out the file itself is printed; given report data is bound as it is."""
    source = ("--attester", attester, "--simulated-platform", folder)
    made = cloister("evidence", "--report-data", "0102", *source)
    assert (made.code, made.json["runtime-data"]) == (0, None)
    file = written(tmp_path, "e", made.out)
    only = ("--verify-only", "--simulated-root", folder / "root.pem")
    assert cloister("verify", file, "--report-data", "0102", *only).code == 0
    assert cloister("verify", file, "--report-data", "0103", *only).code == 3


@pytest.mark.parametrize(("tee", "root"), [("sgx", "root.pem"), ("sev-snp", "snp-root.pem")])
def test_other_simulated_platforms(
    cloister: Callable[..., Done], tmp_path: Path, tee: str, root: str
) -> None:
    """Platforms of either vendor can be made, measured and verified from the command line."""
    assert cloister("simulate", "init", tmp_path / "p", "--tee", tee).code == 0
    config = written(
        tmp_path, "c.toml", f'[attest]\nattester = "simulated-{tee}"\nsimulated_platform = "{tmp_path}/p"\n'
    )
    references = written(tmp_path, "r", cloister("simulate", "measure", "--tee", tee, "-c", config).out)
    file = tmp_path / "e.json"
    assert cloister("evidence", "-c", config, "-o", file).code == 0
    done = cloister("verify", file, "-r", references, "--simulated-root", tmp_path / "p" / root, "--json")
    assert (done.code, done.json["accepted"]) == (0, True), done.err


def test_machine_without_a_tee(cloister: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidence of a machine that has none is an error that lists where was looked."""
    from cloister.attest import attester

    monkeypatch.setattr(attester, "_HARDWARE", {})
    done = cloister("evidence")
    assert done.code == 2
    assert "no TEE" in done.err


def test_verify_only_says_that_nothing_was_appraised(
    cloister: Callable[..., Done], folder: Path, tmp_path: Path, quote: bytes
) -> None:
    """Genuine evidence without reference values is not called accepted, on either stream."""
    file = written(tmp_path, "quote", quote)
    options = ("--scheme", "tdx", "--endorsements", folder / "collateral.json", "--verify-only")
    options += ("--simulated-root", folder / "root.pem")
    people = cloister("verify", file, *options)
    assert people.code == 0
    assert "NOT APPRAISED" in people.out
    assert "NOT APPRAISED" in people.err
    assert "accepted" not in people.out
    programs = cloister("verify", file, *options, "--json")
    assert (programs.json["accepted"], programs.json["appraised"]) == (None, False)
    assert programs.json["claims"]["mr_td"] == MR_TD.hex()


def test_raw_quote_at_a_time_of_the_past(
    cloister: Callable[..., Done], folder: Path, tmp_path: Path, quote: bytes, accepted: Path
) -> None:
    """Vendor bytes are verified as of the time that is given."""
    file = written(tmp_path, "quote", quote)
    options = ("--scheme", "tdx", "--endorsements", folder / "collateral.json", "-r", accepted)
    options += ("--simulated-root", folder / "root.pem", "--json")
    assert cloister("verify", file, *options, "--at", NOW.isoformat()).json["accepted"] is True
    late = cloister("verify", file, *options, "--at", (NOW + timedelta(days=800)).isoformat())
    assert (late.code, late.json["accepted"], late.json["error"]) == (3, False, "StaleEvidence")


@pytest.mark.parametrize("as_json", [True, False])
def test_genuine_but_not_acceptable(
    cloister: Callable[..., Done], folder: Path, tmp_path: Path, quote: bytes, as_json: bool
) -> None:
    """A refusal exits with 3 and lists the check that failed."""
    references = written(tmp_path, "r", f'allow_simulated = true\n[tdx]\nmr_td = ["{"ab" * 48}"]\n')
    file = written(tmp_path, "quote", quote)
    options = ("--scheme", "tdx", "--endorsements", folder / "collateral.json", "-r", references)
    options += ("--simulated-root", folder / "root.pem", *(["--json"] if as_json else []))
    done = cloister("verify", file, *options)
    assert done.code == 3
    assert "mr_td" in done.err
    if as_json:
        failed = [check["name"] for check in done.json["checks"] if not check["passed"]]
        assert (done.json["accepted"], failed) == (False, ["mr_td"])
    else:
        assert "refused" in done.out


def test_genuine_vendor_evidence(cloister: Callable[..., Done], tmp_path: Path) -> None:
    """A genuine quote is genuine at its time under the vendor's own root, and refused long after it."""
    entries = json.loads(vector("MANIFEST.json").read_bytes())["entries"]
    case = next(
        json.loads(vector(entry["file"]).read_bytes())
        for entry in entries
        if entry["kind"] == "dcap-case" and entry["expected"].get("outcome") == "UpToDate"
    )
    collateral = written(tmp_path, "collateral", json.dumps(case["collateral"]))
    scheme = "tdx" if case["quote"].startswith("tdx") else "sgx"
    options = ("--scheme", scheme, "--endorsements", collateral, "--verify-only", "--json")
    done = cloister("verify", vector(case["quote"]), *options, "--at", case["verification_time_iso"])
    assert (done.code, done.json["simulated"]) == (0, False)
    assert cloister("verify", vector(case["quote"]), *options, "--at", "2031-01-01T00:00:00Z").code == 3


def test_forged_evidence(
    cloister: Callable[..., Done], folder: Path, tmp_path: Path, quote: bytes, accepted: Path
) -> None:
    """A changed byte exits with 3, and says so to programs."""
    file = written(tmp_path, "quote", quote[:200] + b"\xff" + quote[201:])
    options = ("--scheme", "tdx", "--endorsements", folder / "collateral.json", "-r", accepted)
    done = cloister("verify", file, *options, "--simulated-root", folder / "root.pem", "--json")
    assert (done.code, done.json["error"]) == (3, "BadSignature")


def test_simulated_root_must_be_given(
    cloister: Callable[..., Done], folder: Path, tmp_path: Path, quote: bytes, accepted: Path
) -> None:
    """Without its root a simulated platform is nobody's."""
    file = written(tmp_path, "quote", quote)
    options = ("--scheme", "tdx", "--endorsements", folder / "collateral.json", "-r", accepted)
    assert cloister("verify", file, *options).code == 3


def test_bundle_of_a_service(
    cloister: Callable[..., Done], folder: Path, tmp_path: Path, accepted: Path
) -> None:
    """A saved bundle verifies with the nonce that it answers, and with no other."""
    attester = SimulatedTdxAttester(SimulatedPlatform.load(folder), mr_td=MR_TD, mr_config_id=MR_CONFIG_ID)
    model = LoadedModel(name="m", version="1", container_digest="ab", signer="s", sandbox="none")
    identity = ServiceIdentity(
        tls_spki=b"spki",
        ohttp_key_config=b"config",
        settings_digest=bytes(48),
        policy_digest=bytes(48),
        callers_digest=bytes(48),
        models=(model,),
    )
    file = written(tmp_path, "bundle", make_bundle(attester, identity, NONCE))
    trust = ("-r", accepted, "--simulated-root", folder / "root.pem")
    done = cloister("verify", file, "--nonce", NONCE.hex(), *trust, "--json")
    assert (done.code, done.json["accepted"]) == (0, True)
    assert done.json["identity"]["models"][0]["name"] == "m"
    assert cloister("verify", file, "--nonce", "ab" * 32, *trust).code == 3
    missing = cloister("verify", file, *trust)
    assert missing.code == 2
    assert "--nonce" in missing.err
    only = cloister("verify", file, "--nonce", NONCE.hex(), "--verify-only", *trust[2:], "--json")
    assert (only.code, only.json["accepted"]) == (0, None)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"not JSON",
        b"[]",
        b"{}",
        b'{"scheme": "tdx"}',
        b'{"scheme": "tdx", "evidence": "!"}',
        b'{"scheme": 7, "evidence": ""}',
        b'{"scheme": "nothing", "evidence": "AA=="}',
        b'{"scheme": "tdx", "evidence": "AA==", "more": 1}',
        b'{"scheme": "tdx", "evidence": "AA==", "endorsements": 7}',
        b'{"scheme": "tdx", "evidence": "AA==", "runtime-data": []}',
        b'{"scheme": "tdx", "evidence": "AA=="}',
        b"[" * 100_000,
    ],
)
def test_malformed_files(
    cloister: Callable[..., Done], tmp_path: Path, accepted: Path, content: bytes
) -> None:
    """What is not an evidence file exits with 4, on one line."""
    done = cloister("verify", written(tmp_path, "e", content), "-r", accepted)
    assert done.code == 4
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("absent.json",), "cannot read"),
        (("e", "--at", "yesterday"), "RFC 3339"),
        (("e", "--at", "2026-01-01T00:00:00"), "offset"),
        (("e", "--nonce", "xy"), "hexadecimal"),
        (("e", "--report-data", "00" * 65), "65 bytes"),
        (("https://127.0.0.1:9", "--at", "2026-01-01T00:00:00Z"), "for files"),
    ],
)
def test_wrong_usage(
    cloister: Callable[..., Done], accepted: Path, arguments: tuple[str, ...], reason: str
) -> None:
    """Options that make no sense exit with 2 and say which."""
    done = cloister("verify", *arguments, "-r", accepted)
    assert done.code == 2
    assert reason in done.err


def test_nonce_and_report_data_exclude_each_other(cloister: Callable[..., Done]) -> None:
    """Evidence binds one thing."""
    assert cloister("evidence", "--nonce", "00", "--report-data", "00").code == 2
