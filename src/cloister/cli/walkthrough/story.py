"""The demo, step by step: from a trained network to a verified answer, and what is refused on the way."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from cloister.attest.simulated.platform import SimulatedPlatform
from cloister.cli.options import now
from cloister.cli.walkthrough import refusals
from cloister.cli.walkthrough.canary import Markers, all_files, search
from cloister.cli.walkthrough.narrator import DemoFailed, Narrator
from cloister.cli.walkthrough.processes import command
from cloister.cli.walkthrough.stage import Stage
from cloister.cli.walkthrough.train import TrainedModel, train_digits

RIGHT_ANSWERS_NEEDED = 48
SHOWN_ANSWERS = 20
PROBE_BYTES = 24


def tell(stage: Stage, markers: Markers, console: Console) -> Narrator:
    """Tell the whole story; returns the narrator, whose processes are still running.

    Raises:
        DemoFailed: a step did not come out as it must; everything is stopped then.
    """
    narrator = Narrator(stage, console)
    try:
        model = train(narrator, markers)
        start_broker(narrator)
        seal(narrator, model)
        start_server(narrator)
        ask(narrator, model, markers)
        refuse(narrator)
        prove(narrator, markers)
    except BaseException:
        narrator.stop()
        raise
    return narrator


def train(narrator: Narrator, markers: Markers) -> TrainedModel:
    """Step 1: the owner's model."""
    narrator.title(
        "The owner trains a model",
        "A small network learns scikit-learn's 1,797 scanned digits, and is packed with its handler as a "
        "TorchServe archive. So far this is anybody's work, on the owner's own machine.",
    )
    columns = (TextColumn("  training"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"))
    with Progress(*columns, console=narrator.console, transient=True) as progress:
        task = progress.add_task("training", total=None)
        model = train_digits(
            narrator.stage.plaintext,
            markers,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    narrator.done(f"digits.mar, {model.archive.stat().st_size:,} bytes, {len(model.images)} test images")
    return model


def start_broker(narrator: Narrator) -> None:
    """Step 2: the key broker."""
    stage = narrator.stage
    narrator.title(
        "The owner starts a key broker",
        "It keeps data keys, and releases one only to a TEE that proves which code and which settings it "
        "runs. The owner writes down which measurement that is, and a policy.",
    )
    narrator.show(command("simulate", "init", stage.path("platform")))
    SimulatedPlatform.create(stage.path("platform"), now())
    stage.write_settings()
    arguments = command("keys", "serve", "-c", stage.path("broker.toml"))
    narrator.start("broker", arguments, stage.broker_url + "/healthz")
    narrator.done(f"listening on {stage.broker_url}; expects mr_td {stage.mr_td[:32]}…")


def seal(narrator: Narrator, model: TrainedModel) -> None:
    """Step 3: the sealed container."""
    stage = narrator.stage
    narrator.title(
        "The owner seals the model",
        "A new key goes to the broker; the archive is encrypted under it and signed. The container may "
        "lie on any disk.",
    )
    arguments = command(
        *("seal", model.archive, "--name", "digits", "--version", "1.0"),
        *("--key", "kbs:///demo/digits/1.0", "--store", stage.path("store")),
        *("--broker", stage.broker_url, "--broker-ca", stage.path("keys") / "tls.pem"),
        *("--admin-token", stage.path("keys") / "admin.token"),
        *("--signer", stage.path("owner") / "signer.key", "--json"),
    )
    facts = json.loads(narrator.run("seal", arguments))
    stage.path("signers.txt").write_text(facts["signer"] + "\n")
    for what, secret in (("weights", model.weights), ("handler source", model.handler_source)):
        probes = _probes(secret)
        plain, sealed = (_found(probes, path) for path in (model.archive, Path(facts["container"])))
        if not plain or sealed:
            raise DemoFailed(f"{what}: {plain} pieces found in the archive, {sealed} in the container")
        narrator.done(
            f"of {len(probes):,} pieces of the {what}, {plain:,} are in the archive, 0 in the container"
        )


def start_server(narrator: Narrator) -> None:
    """Step 4: the protected server."""
    stage = narrator.stage
    narrator.title(
        "An operator starts the server in a TEE",
        "Here the TEE is simulated: its quotes are real TDX v4 quotes, under a root of their own. The "
        "server proves its code (mr_td) and its settings (mr_config_id), gets the key, and decrypts in "
        "memory.",
    )
    narrator.start("server", command("serve", "-c", stage.path("server.toml")), stage.url + "/ping")
    narrator.done(f"listening on {stage.url}; mr_config_id {stage.config_digest('server.toml')[:32]}…")


def ask(narrator: Narrator, model: TrainedModel, markers: Markers) -> None:
    """Step 5: a caller verifies, then asks."""
    stage = narrator.stage
    narrator.title(
        "A caller verifies the server, then asks",
        "The caller sends a fresh nonce, checks the quote's chain and every reference value, and learns "
        "the keys that the evidence speaks for. Only then is each image sealed to such a key (OHTTP).",
    )
    trust = narrator.trust("caller-reference.toml")
    narrator.run("verify", command("verify", stage.url, *trust), shown=True)
    arguments = command("predict", stage.url, "digits", *model.images, *trust, "--json")
    answers = json.loads(narrator.run("predict", arguments, instead="50 images, one request each"))
    digits = [row["answer"]["digit"] for row in answers]
    if any(row["answer"]["note"] != markers.answer for row in answers):
        raise DemoFailed("an answer does not carry the handler's note")
    narrator.console.print(_answers_table(digits[:SHOWN_ANSWERS], model.labels[:SHOWN_ANSWERS]))
    right = sum(found == label for found, label in zip(digits, model.labels, strict=True))
    if right < RIGHT_ANSWERS_NEEDED:
        raise DemoFailed(f"only {right} of {len(digits)} images are right")
    narrator.done(f"{right} of {len(digits)} images right")


def refuse(narrator: Narrator) -> None:
    """Step 6: what must not work."""
    narrator.title(
        "What is refused",
        "Each of the first three ends with exit code 3 and one line that says why; the last is answered 403.",
    )
    refusals.refuse_flipped_container(narrator)
    refusals.refuse_changed_code(narrator)
    refusals.refuse_other_reference(narrator)
    refusals.refuse_unsealed(narrator)


def prove(narrator: Narrator, markers: Markers) -> None:
    """Step 7: the audit log, and the search for canaries."""
    stage = narrator.stage
    narrator.title(
        "An auditor reads the broker's log",
        "Every release and every refusal is a line; each line holds the hash of the one before.",
    )
    config = ("-c", stage.path("broker.toml"))
    narrator.run("audit-show", command("keys", "audit", "show", *config), shown=True)
    summary = json.loads(narrator.run("audit-verify", command("keys", "audit", "verify", *config, "--json")))
    if summary["releases"] < 1 or summary["refusals"] < 1:
        raise DemoFailed(f"the audit log should hold releases and refusals, and holds {summary}")
    narrator.done(
        f"chain of {summary['entries']} lines verified: {summary['releases']} keys released, "
        f"{summary['refusals']} refused"
    )
    stage.log("metrics").write_text(refusals.read_metrics(stage.url))
    hits = list(search([stage.folder], markers))
    if hits:
        raise DemoFailed("; ".join(f"the canary in the {kind} is in {path}" for path, kind in hits))
    narrator.done(
        "canaries planted in weights, handler, requests and answers: 0 found in "
        f"{len(all_files([stage.folder]))} files (logs, metrics, database, containers)"
    )


def _probes(secret: bytes) -> list[bytes]:
    """Pieces of a secret that are distinctive enough to search for."""
    pieces = (secret[at : at + PROBE_BYTES] for at in range(0, len(secret) - PROBE_BYTES, PROBE_BYTES))
    return [piece for piece in pieces if len(set(piece)) > PROBE_BYTES // 3]


def _found(probes: list[bytes], path: Path) -> int:
    content = path.read_bytes()
    return sum(probe in content for probe in probes)


def _answers_table(digits: list[int], labels: tuple[int, ...]) -> Table:
    table = Table(
        show_header=False, title=f"the first {len(digits)} beside their true labels", title_justify="left"
    )
    for _ in range(11):
        table.add_column(justify="right")
    for start in range(0, len(digits), 10):
        pairs = list(zip(digits[start : start + 10], labels[start : start + 10], strict=True))
        marked = [f"[green]{a}[/green]" if a == b else f"[bold red]{a}[/bold red]" for a, b in pairs]
        table.add_row("[bold]predicted[/bold]", *marked)
        table.add_row("true", *(f"[dim]{label}[/dim]" for _, label in pairs), end_section=True)
    return table
