"""A model's owner in tests: seals another model into the store of a world that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloister.kbs.client import BrokerAdmin
from cloister.kbs.owner import SealRequest, load_or_create_signer, seal_model
from cloister.seal.signing import TrustedSigners
from cloister.seal.store import ModelStore
from tests.processes.server import pack

if TYPE_CHECKING:
    from tests.processes.test_protected import World


def seal_handler(world: World, name: str, source: str) -> None:
    """Pack one handler module, seal it, and trust its signer."""
    folder = world.folder
    archive = pack(world.memory, name, source)
    signer = load_or_create_signer(world.memory / "signer.key")
    with (folder / "signers.txt").open("a") as signers:
        signers.write(signer.public + "\n")
    token = (folder / "keys" / "admin.token").read_text()
    with BrokerAdmin(world.flags["serve.broker"], token=token, ca=folder / "keys/tls.pem") as admin:
        request = SealRequest(
            source=archive, name=name, version="1.0", sequence=1, key_uri=f"kbs:///models/{name}/1"
        )
        container = seal_model(request, admin=admin, signer=signer, out=world.memory / f"{name}.sealed")
    lines = (folder / "signers.txt").read_text().split()
    ModelStore(folder / "store", TrustedSigners.from_lines(lines)).add(container)
