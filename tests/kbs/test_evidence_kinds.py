"""Every kind of evidence that the broker takes, at a whole broker: released, refused, with init data."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attest.binding import report_data_for
from cloister.attest.dcap.quote import parse_quote
from cloister.attest.simulated import SimulatedPlatform
from cloister.attest.simulated.snp import SimulatedSnpPlatform
from cloister.attest.snp.trustee import render_trustee_evidence
from tests.fakes.azure import MEASUREMENT, MR_TD, PCRS, bound, hcl_report, runtime_data, tdreport
from tests.fakes.tpm import FakeTpm
from tests.kbs.broker_process import Run, RunningBroker
from tests.kbs.conftest import SECRET
from tests.kbs.test_server import last_entry, variant
from tests.kbs.test_trustee_server import INIT_DATA
from tests.vectors import vector

TPM = FakeTpm()
DATA = runtime_data(TPM)
PATH = "models/key/digits"
POLICY = 'permit (principal, action == Action::"release", resource) when {{ context.tee == "{tee}" {more} }};'
OTHER_PCRS = {"sha256": {**PCRS["sha256"], 4: bytes(32)}}


@dataclass
class Machine:
    """One kind of TEE: what it shows for 64 bytes of report data and some values of its PCRs."""

    tee: str
    reference: str
    primary: Callable[[bytes, Any], dict[str, Any]]
    root: Path | None
    collateral: Path
    policy: str = ""


def quoted(report_data: bytes, pcrs: Any) -> dict[str, Any]:
    """The TPM's quote in Trustee's form."""
    evidence: dict[str, Any] = TPM.evidence(pcrs, quoted_nonce=report_data)["tpm_quote"]
    return evidence


def az_snp(snp: SimulatedSnpPlatform, files: Path) -> Machine:
    """A machine on a fake Azure, on SEV-SNP."""
    vcek = base64.b64encode(snp.endorsements(datetime.now(UTC)).vcek or b"").decode()

    def primary(report_data: bytes, pcrs: Any) -> dict[str, Any]:
        report = hcl_report(snp.quote(bound(DATA), measurement=MEASUREMENT), 2, DATA)
        shown = base64.urlsafe_b64encode(report).decode()
        return {"version": 1, "tpm_quote": quoted(report_data, pcrs), "hcl_report": shown, "vcek": vcek}

    reference = f'[az-snp-vtpm]\nmeasurement = ["{MEASUREMENT.hex()}"]\ntcb_status = ["Committed"]\n'
    more = f'&& context has measurement && context.measurement == "{MEASUREMENT.hex()}"'
    root, collateral = files / "snp.pem", files / "snp.json"
    return Machine("az-snp-vtpm", reference + PINNED, primary, root, collateral, more)


def az_tdx(tdx: SimulatedPlatform, files: Path) -> Machine:
    """The same on TDX."""

    def primary(report_data: bytes, pcrs: Any) -> dict[str, Any]:
        quote = tdx.quote(bound(DATA), mr_td=MR_TD)
        report = hcl_report(tdreport(bound(DATA), parse_quote(quote).body), 4, DATA)
        return {
            "version": 1,
            "tpm_quote": quoted(report_data, pcrs),
            "hcl_report": base64.urlsafe_b64encode(report).decode(),
            "td_quote": quote.hex(),
        }

    more = f'&& context has mr_td && context.mr_td == "{MR_TD.hex()}"'
    reference = f'[az-tdx-vtpm]\nmr_td = ["{MR_TD.hex()}"]\n{PINNED}'
    return Machine("az-tdx-vtpm", reference, primary, files / "tdx.pem", files / "tdx.json", more)


def tpm(files: Path) -> Machine:
    """A machine with nothing but a TPM, whose attestation key the owner has enrolled."""
    key = hashlib.sha256(TPM.spki).hexdigest()

    def primary(report_data: bytes, pcrs: Any) -> dict[str, Any]:
        return TPM.evidence(pcrs, quoted_nonce=report_data)

    reference = f'[tpm]\nattestation_keys = ["{key}"]\n{PINNED}'
    return Machine("tpm", reference, primary, None, files / "empty.json")


PINNED = f'pcrs = {{ 4 = ["{PCRS["sha256"][4].hex()}"] }}\n'


@pytest.fixture(scope="module")
def files(platform: SimulatedPlatform, snp: SimulatedSnpPlatform, tmp_path_factory: Any) -> Path:
    """Roots and collateral of both platforms."""
    folder: Path = tmp_path_factory.mktemp("files")
    now = datetime.now(UTC)
    for name, made in (("tdx", platform), ("snp", snp)):
        (folder / f"{name}.pem").write_bytes(made.root.public_bytes(Encoding.PEM))
        (folder / f"{name}.json").write_bytes(msgspec.json.encode(made.endorsements(now).to_mapping()))
    (folder / "empty.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def snp(tmp_path_factory: Any) -> SimulatedSnpPlatform:
    """A simulated SEV-SNP platform."""
    return SimulatedSnpPlatform.create(tmp_path_factory.mktemp("snp") / "platform", datetime.now(UTC))


@pytest.fixture(params=["az-snp-vtpm", "az-tdx-vtpm", "tpm"])
def machine(request: Any, platform: SimulatedPlatform, snp: SimulatedSnpPlatform, files: Path) -> Machine:
    """One of each kind."""
    if request.param == "tpm":
        return tpm(files)
    return az_snp(snp, files) if request.param == "az-snp-vtpm" else az_tdx(platform, files)


@contextmanager
def broker_for(machine: Machine, platform: SimulatedPlatform, folder: Path) -> Iterator[RunningBroker]:
    """A broker that accepts this machine, and a policy that names it."""
    running = RunningBroker(
        folder,
        platform,
        collateral="" if machine.root is None else str(machine.collateral),
        simulated_root="" if machine.root is None else str(machine.root),
    )
    running.reference.write_text(f"allow_simulated = true\n{machine.reference}")
    running.policy.write_text(POLICY.format(tee=machine.tee, more=machine.policy))
    running.put(f"kbs:///{PATH}", SECRET)
    try:
        yield running
    finally:
        running.stop()


def message(run: Run, machine: Machine, pcrs: Any = PCRS, *, algorithm: str = "sha384") -> dict[str, Any]:
    """The honest message of step 2."""
    public = dict(run.key.public_jwk)
    runtime = {"additional-evidence": "", "nonce": run.nonce, "tee-pubkey": public}
    primary = machine.primary(report_data_for(runtime, algorithm), pcrs)
    return {
        "runtime-data": {"nonce": run.nonce, "tee-pubkey": public},
        "tee-evidence": {"primary_evidence": primary, "additional_evidence": ""},
    }


def test_released_by_cookie_and_token(machine: Machine, platform: SimulatedPlatform, tmp_path: Path) -> None:
    """Evidence in the guest's form is verified, appraised and decided on; the secret comes to its key."""
    with broker_for(machine, platform, tmp_path) as broker, broker.http() as http:
        run = Run(broker, http)
        run.auth(tee=machine.tee)
        answer = run.attest(message(run, machine))
        assert answer.status_code == 200, answer.text
        assert run.key.decrypt(run.get(PATH).json()) == SECRET
        http.cookies.clear()
        assert run.key.decrypt(run.get(PATH, answer.json()["token"]).json()) == SECRET
        entry = last_entry(broker)
        assert (entry["kind"], entry["subject"]) == ("release", f"tee:{machine.tee}")


@pytest.mark.parametrize("spoil", ["nonce", "pcr", "signature", "other TEE", "measured"])
def test_refused(machine: Machine, platform: SimulatedPlatform, tmp_path: Path, spoil: str) -> None:
    """Another nonce, a PCR that was not quoted, a bad signature, another name, another boot: no key."""
    with broker_for(machine, platform, tmp_path) as broker, broker.http() as http:
        run = Run(broker, http)
        run.auth(tee="tdx" if spoil == "other TEE" else machine.tee)
        if spoil == "nonce":
            run.nonce = base64.b64encode(bytes(32)).decode()
        body = message(run, machine, OTHER_PCRS if spoil == "measured" else PCRS)
        quote = body["tee-evidence"]["primary_evidence"]["tpm_quote"]
        if spoil == "pcr":
            quote["pcrs"]["sha256"]["4"] = "00" * 32
        if spoil == "signature":
            quote["signature"] = quote["signature"][:-2] + ("00" if quote["signature"][-2:] != "00" else "01")
        answer = run.attest(body)
        assert (answer.status_code, variant(answer)) == (401, "AttestationError")
        assert last_entry(broker)["kind"] == "refusal"
        if spoil == "measured":
            assert "pcrs" in answer.json()["detail"]


@pytest.mark.parametrize("algorithm", ["sha256", "sha384"])
def test_init_data_in_a_pcr(
    machine: Machine, platform: SimulatedPlatform, tmp_path: Path, algorithm: str
) -> None:
    """A digest that was extended into PCR 8 binds init data; any other init data is refused."""
    body = INIT_DATA.replace("sha384", algorithm)
    digest = hashlib.new(algorithm, body.encode()).digest()
    pcr = hashlib.sha256(bytes(32) + digest[:32]).digest()
    pcrs = {"sha256": {**PCRS["sha256"], 8: pcr}}
    with broker_for(machine, platform, tmp_path) as broker, broker.http() as http:
        wanted = f'&& context has init_data_digest && context.init_data_digest == "{digest.hex()}"'
        broker.policy.write_text(POLICY.format(tee=machine.tee, more=wanted))
        run = Run(broker, http)
        for sent, good in ((body, True), (body + "# more\n", False)):
            run.auth(tee=machine.tee)
            attestation = message(run, machine, pcrs)
            answer = run.attest({**attestation, "init-data": {"format": "toml", "body": sent}})
            assert (answer.status_code == 200) == good, answer.text
            if good:
                assert run.key.decrypt(run.get(PATH).json()) == SECRET
            else:
                assert "PCR 8" in answer.json()["detail"]


def test_collateral_of_several_kinds_in_one_file(
    platform: SimulatedPlatform, snp: SimulatedSnpPlatform, files: Path, tmp_path: Path
) -> None:
    """Each kind of evidence is verified with its own part of the file."""
    both = {"tdx": "tdx", "az-tdx-vtpm": "tdx", "az-snp-vtpm": "snp"}
    parts = {scheme: json.loads((files / f"{name}.json").read_bytes()) for scheme, name in both.items()}
    (tmp_path / "all.json").write_text(json.dumps(parts))
    for machine in (az_tdx(platform, files), az_snp(snp, files)):
        machine.collateral = tmp_path / "all.json"
        with broker_for(machine, platform, tmp_path / machine.tee) as broker, broker.http() as http:
            run = Run(broker, http)
            run.auth(tee=machine.tee)
            assert run.attest(message(run, machine)).status_code == 200


def test_snp_that_brings_its_certificates(
    platform: SimulatedPlatform, snp: SimulatedSnpPlatform, files: Path, tmp_path: Path
) -> None:
    """A report with ``cert_chain`` needs no collateral at the broker; a chain of another chip is refused."""
    other = SimulatedSnpPlatform.create(tmp_path / "other", datetime.now(UTC))
    chains = {}
    for name, made in (("own", snp), ("other", other)):
        given = made.endorsements(datetime.now(UTC))
        parts = (("VCEK", given.vcek), ("ASK", given.ask), ("ARK", given.ark))
        chains[name] = [{"cert_type": kind, "data": list(der)} for kind, der in parts if der]
    chosen = "own"

    def primary(report_data: bytes, _pcrs: Any) -> dict[str, Any]:
        shown = render_trustee_evidence(snp.quote(report_data, measurement=MEASUREMENT))
        return {**shown, "cert_chain": chains[chosen]}

    reference = f'[sev-snp]\nmeasurement = ["{MEASUREMENT.hex()}"]\ntcb_status = ["Committed"]\n'
    by_scheme = tmp_path / "by-scheme.json"
    by_scheme.write_text(json.dumps({"tdx": json.loads((files / "tdx.json").read_bytes())}))
    machine = Machine("snp", reference, primary, files / "snp.pem", by_scheme)
    with broker_for(machine, platform, tmp_path / "broker") as broker, broker.http() as http:
        run = Run(broker, http)
        for chosen, good in (("own", True), ("other", False)):  # noqa: B007 (``primary`` reads it)
            run.auth(tee="snp")
            answer = run.attest(message(run, machine))
            assert (answer.status_code == 200) == good, answer.text
            if good:
                assert run.key.decrypt(run.get(PATH).json()) == SECRET


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_hash_algorithms_are_negotiated(broker: RunningBroker, algorithm: str) -> None:
    """A guest that offers no SHA-384 is told which other hash binds its evidence, and held to it."""
    machine = Machine("tdx", "", _tdx(broker.platform), None, Path())
    with broker.http() as http:
        run = Run(broker, http)
        offered = {"supported-hash-algorithms": [algorithm.upper()]}
        for used, good in ((algorithm, True), ("sha384", False)):
            challenge = run.auth(**{"extra-params": offered})
            assert challenge.json()["extra-params"] == {"selected-hash-algorithm": algorithm}
            answer = run.attest(message(run, machine, algorithm=used))
            assert (answer.status_code == 200) == good, answer.text
            if good:
                assert run.key.decrypt(run.get(PATH).json()) == SECRET


def test_the_usual_hash_is_not_announced(broker: RunningBroker) -> None:
    """Whoever offers SHA-384 among others gets the challenge that Trustee's guests have always got."""
    with broker.http() as http:
        run = Run(broker, http)
        offered = {"supported-hash-algorithms": ["sha256", "sha384", "sha512"]}
        assert run.auth(**{"extra-params": offered}).json()["extra-params"] == ""
        for wrong in (["md5"], [], "sha384", 7):
            refused = run.auth(**{"extra-params": {"supported-hash-algorithms": wrong}})
            assert (refused.status_code, variant(refused)) == (401, "AttestationError")


@pytest.mark.parametrize(
    ("tee", "name"),
    [
        ("az-snp-vtpm", "trustee_az-snp-vtpm_evidence-v1"),
        ("az-snp-vtpm", "trustee_az-snp-vtpm_evidence-v2"),
        ("az-tdx-vtpm", "trustee_az-tdx-vtpm_evidence-v1"),
    ],
)
def test_real_evidence_is_not_good_twice(broker: RunningBroker, tee: str, name: str) -> None:
    """Evidence of a real Azure machine, replayed: read in its own form, and refused."""
    primary = json.loads(vector(f"azure-vtpm/dev/{name}/evidence.json").read_bytes())
    with broker.http() as http:
        run = Run(broker, http)
        run.auth(tee=tee)
        body = run.body()
        body["tee-evidence"]["primary_evidence"] = primary
        answer = run.attest(body)
        assert (answer.status_code, variant(answer)) == (401, "AttestationError")
        entry = last_entry(broker)
        assert (entry["kind"], entry["subject"]) == ("refusal", f"tee:{tee}")
        assert len(entry["evidence_digest"]) == 64


def _tdx(platform: SimulatedPlatform) -> Callable[[bytes, Any], dict[str, Any]]:
    def primary(report_data: bytes, _pcrs: Any) -> dict[str, Any]:
        from tests.kbs.broker_process import Tee

        raw = Tee(platform).get_evidence(report_data).raw
        return {"cc_eventlog": None, "quote": base64.b64encode(raw).decode()}

    return primary
