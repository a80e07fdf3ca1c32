"""Every engine end to end: sealed, unlocked by attestation, served inside the sandbox, without a handler."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cloister.errors import CloisterError
from cloister.kbs.client import BrokerAdmin
from cloister.kbs.owner import SealRequest, load_or_create_signer, seal_model
from cloister.seal.signing import TrustedSigners
from cloister.seal.store import ModelStore
from cloister.serve.direct.pack import pack_model
from tests.engines.models import MODELS, Made
from tests.processes.server import Server
from tests.processes.test_protected import World, make_world


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """One model for each engine whose packages are installed."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for name, make in MODELS.items():
        (folder / name).mkdir()
        model = make(folder / name)
        if model is not None:
            found[name] = model
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, made: dict[str, Made]) -> Iterator[World]:
    """A broker, and every model sealed into its store."""
    with make_world(tmp_path_factory.mktemp("world")) as found:
        seal_all(found, made)
        yield found


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[Server]:
    """The protected server with all of them."""
    with Server(world.flags, environment={"HOME": str(world.folder / "home")}) as running:
        running.wait_ready()
        yield running


def seal_all(world: World, made: dict[str, Made]) -> None:
    folder = world.folder
    with tempfile.TemporaryDirectory(dir=world.memory) as plain:
        signer = load_or_create_signer(Path(plain, "signer.key"))
        signers = folder / "signers.txt"
        signers.write_text(signers.read_text() + signer.public + "\n")
        token = (folder / "keys" / "admin.token").read_text()
        with BrokerAdmin(world.flags["serve.broker"], token=token, ca=folder / "keys/tls.pem") as admin:
            for name, model in made.items():
                archive = Path(plain, f"{name}.mar")
                pack_model(
                    archive,
                    name=name,
                    version="1.0",
                    model=model.file,
                    kind=model.kind,
                    options=model.options,
                    settings=model.settings,
                    extra_files=model.extra_files,
                )
                request = SealRequest(
                    source=archive, name=name, version="1.0", sequence=1, key_uri=f"kbs:///models/{name}/1"
                )
                out = Path(plain, f"{name}.sealed")
                container = seal_model(request, admin=admin, signer=signer, out=out)
                ModelStore(folder / "store", TrustedSigners.from_lines([signer.public])).add(container)


@pytest.mark.parametrize("name", MODELS)
def test_sealed_answers_are_the_librarys_own(
    world: World, server: Server, made: dict[str, Made], name: str
) -> None:
    """JSON and tensors, sealed, are answered as the library answers when it is called directly."""
    if name not in made:
        pytest.skip("its packages are not installed")
    model = made[name]
    inputs = {key: value.tolist() for key, value in model.inputs.items()}
    with world.client() as client:
        answer = json.loads(client.predict(name, inputs).content)
    found = answer if isinstance(answer, dict) else {next(iter(model.expected)): answer}
    for key, expected in model.expected.items():
        np.testing.assert_allclose(np.array(found[key], expected.dtype), expected, rtol=model.rtol, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_metadata_and_refusals_know_the_model(server: Server, made: dict[str, Made], name: str) -> None:
    """The protocol's metadata has the real tensors, and what is not of them is refused with these."""
    if name not in made:
        pytest.skip("its packages are not installed")
    document = httpx.get(f"{server.url}/v2/models/{name}", verify=False).json()
    assert {item["name"] for item in document["inputs"]} == set(made[name].inputs)
    assert document["platform"] == made[name].kind
    tensor: dict[str, Any] = {"name": "nothing", "datatype": "FP32", "shape": [1], "data": [1]}
    url = f"{server.url}/v2/models/{name}/infer"
    refused = httpx.post(url, json={"inputs": [tensor]}, verify=False)
    assert refused.status_code == 400
    assert "expected" in refused.json()["error"]


def test_workers_are_confined(world: World, server: Server) -> None:
    """What an engine needs does not open the sandbox: all models have the same one."""
    with world.client() as client:
        states = {model.sandbox for model in client.verify().identity.models}
    assert len(states) == 1


def test_a_sealed_refusal_says_what_was_expected(world: World, server: Server, made: dict[str, Made]) -> None:
    """The caller learns the schema inside the seal."""
    with world.client() as client, pytest.raises(CloisterError, match="expected"):
        client.predict(next(iter(made)), {"nothing": [1]})
