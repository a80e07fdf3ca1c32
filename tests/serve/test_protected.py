"""What a protected server does besides answering: its OHTTP key changes."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys

import pytest

from cloister.errors import UnknownKeyConfig
from cloister.ohttp.capsule import KeyConfig, seal_request
from cloister.ohttp.gateway import Gateway
from cloister.serve import protected


def test_keys_rotate_with_an_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The former key is accepted for a while after the change, and then not any more."""

    async def test() -> None:
        gateway = Gateway.generate()
        first = KeyConfig.parse(gateway.key_config)
        rotation = asyncio.create_task(protected.keep_rotating(gateway, 0.6))
        await asyncio.sleep(0.45)
        second = KeyConfig.parse(gateway.key_config)
        assert second.key_id != first.key_id
        gateway.open(seal_request(first, b"a")[0])
        gateway.open(seal_request(second, b"b")[0])
        await asyncio.sleep(0.3)
        with pytest.raises(UnknownKeyConfig):
            gateway.open(seal_request(first, b"c")[0])
        gateway.open(seal_request(second, b"d")[0])
        rotation.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await rotation

    asyncio.run(test())


def test_start_without_what_it_does_not_need() -> None:
    """A protected server comes up without a database library and numpy, which cost it half a second."""
    script = (
        "import sys, cloister.serve.server, cloister.serve.protected, cloister.serve.access.setup; "
        "print(*{'sqlalchemy', 'numpy', 'cloister.serve.unlock'}.intersection(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["cloister.serve.unlock"]
