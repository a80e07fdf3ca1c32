"""A real TPM in software, swtpm of Debian: started on free ports of loopback, stopped afterwards."""

from __future__ import annotations

import importlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port

OWNER_READ_WRITE = "ownerwrite|ownerread|authread|no_da"


def require_swtpm() -> Any:
    """The tpm2_pytss package; skips the test where it or swtpm is absent."""
    if shutil.which("swtpm") is None:
        pytest.skip("no swtpm; apt-get install swtpm libtss2-dev")
    try:
        return importlib.import_module("tpm2_pytss")
    except (ImportError, OSError) as error:
        pytest.skip(f"no tpm2-pytss (extra tpm), or not the libraries that it needs: {error}")


@contextmanager
def software_tpm(folder: Path) -> Iterator[str]:
    """A new TPM with its state in ``folder``; gives its TCTI."""
    server, control = _two_free_ports()
    command = [
        *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}"),
        *("--server", f"type=tcp,port={server},bindaddr=127.0.0.1"),
        *("--ctrl", f"type=tcp,port={control},bindaddr=127.0.0.1"),
        *("--flags", "not-need-init,startup-clear"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(control)
        yield f"swtpm:host=127.0.0.1,port={server}"
    finally:
        process.terminate()
        process.wait(timeout=10)


def write_nv(tpm: Any, pytss: Any, index: int, content: bytes) -> None:
    """Define an NV index that the owner may read and write, and fill it."""
    public = pytss.TPM2B_NV_PUBLIC(
        nvPublic=pytss.TPMS_NV_PUBLIC(
            nvIndex=index,
            nameAlg=pytss.TPM2_ALG.SHA256,
            attributes=pytss.TPMA_NV.parse(OWNER_READ_WRITE),
            dataSize=len(content),
        )
    )
    handle = tpm.nv_define_space(None, public)
    for offset in range(0, len(content), 512):
        tpm.nv_write(handle, content[offset : offset + 512], offset=offset, auth_handle=pytss.ESYS_TR.OWNER)


def _two_free_ports() -> tuple[int, int]:
    """The TCTI takes the control port to be the next one."""
    port, following = free_port(), free_port()
    while following != port + 1:
        port, following = following, free_port()
    return port, following


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError("swtpm did not start")
