"""A KEK in a PKCS #11 token: SoftHSM stands for the hardware, through the same interface."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOFTHSM = next(
    (
        path
        for path in map(
            Path,
            (
                "/usr/lib/softhsm/libsofthsm2.so",
                "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
                "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
            ),
        )
        if path.exists()
    ),
    None,
)
pytestmark = pytest.mark.skipif(
    SOFTHSM is None or shutil.which("softhsm2-util") is None, reason="needs SoftHSM: apt-get install softhsm2"
)
PIN = "CANARY-1234"

# The module reads its configuration once per process, so each test has a process of its own.
PRELUDE = f"""
import os, sys
from pathlib import Path
folder = Path(sys.argv[1])
os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
import pkcs11
from cloister.crypto.keys import SecretKey
from cloister.errors import *
from cloister.kbs.kek import WrappedKey, open_envelope, open_kek, seal_envelope
URI = "pkcs11:token=cloister;object={{}}?module-path={SOFTHSM}&pin-source=file:" + str(folder / "pin")
def make_key(label, bits=256):
    token = pkcs11.lib("{SOFTHSM}").get_token(token_label="cloister")
    with token.open(rw=True, user_pin="{PIN}") as session:
        session.generate_key(pkcs11.KeyType.AES, bits, label=label, store=True)
def fails(error, text, function, *arguments):
    try:
        function(*arguments)
    except error as caught:
        assert text in str(caught), caught
        assert "CANARY" not in str(caught)
    else:
        raise AssertionError("nothing was raised")
"""


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """A token without keys, and its PIN in a file."""
    (tmp_path / "tokens").mkdir()
    configuration = tmp_path / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {tmp_path}/tokens\nobjectstore.backend = file\n")
    (tmp_path / "pin").touch(0o600)
    (tmp_path / "pin").write_text(PIN)
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", "cloister", "--pin", PIN, "--so-pin", PIN],
        env={"SOFTHSM2_CONF": str(configuration), "PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
    )
    return tmp_path


def run(token: Path, body: str) -> None:
    """Run a test's body beside the token."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + body, str(token)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_round_trip_and_binding(token: Path) -> None:
    """The token wraps and unwraps; a moved, changed or foreign record does not open."""
    run(
        token,
        """
make_key("kek")
kek = open_kek(URI.format("kek"))
assert kek.key_id == "pkcs11:cloister/kek" and not kek.local
envelope = seal_envelope(kek, b"secret", "a/b/c?version=1")
assert open_envelope(kek, envelope, "a/b/c?version=1") == b"secret"
key = SecretKey.generate()
wrapped = kek.wrap(key, "r")
assert kek.unwrap(wrapped, "r") == key and key.raw not in wrapped.data
fails(BadCiphertext, "does not open", kek.unwrap, wrapped, "another")
for at in range(len(wrapped.data)):
    changed = wrapped.data[:at] + bytes([wrapped.data[at] ^ 1]) + wrapped.data[at + 1:]
    fails(BadCiphertext, "", kek.unwrap, WrappedKey(wrapped.kek_id, changed), "r")
fails(BadCiphertext, "", kek.unwrap, WrappedKey(wrapped.kek_id, wrapped.data[:-1]), "r")
fails(BadCiphertext, "", kek.unwrap, WrappedKey("pkcs11:cloister/other", wrapped.data), "r")
fails(ConfigError, "no generations", kek.renew)
""",
    )


def test_two_keys_of_one_token_and_rotation(token: Path) -> None:
    """A ring of two keys in one token moves every record from the one to the other."""
    run(
        token,
        """
from cloister.kbs.kek import open_ring
from cloister.kbs.protocol import ResourcePath
from cloister.kbs.database import Database
from cloister.kbs.records import load_version, store_version
from cloister.kbs.rotation import rotate_kek
make_key("old"); make_key("new")
database = Database(f"sqlite:///{folder}/kbs.sqlite")
path = ResourcePath("a", "b", "c")
with database.write() as session:
    store_version(session, open_kek(URI.format("old")), path, b"secret", created="2026-11-20")
ring = open_ring(URI.format("new"), [URI.format("old")])
done = rotate_kek(database, ring, renew=False, retire=True)
assert (done.kek_id, done.rewrapped) == ("pkcs11:cloister/new", 1)
with database.read() as session:
    assert load_version(session, open_kek(URI.format("new")), path)[0] == b"secret"
    fails(BadCiphertext, "wrapped under KEK", load_version, session, open_kek(URI.format("old")), path)
database.close()
""",
    )


def test_unusable_tokens(token: Path) -> None:
    """No such key, a short key, a wrong PIN, no such token or module: each is named, the PIN never is."""
    run(
        token,
        """
make_key("short", 128)
fails(ConfigError, "no AES key 'kek'", open_kek, URI.format("kek"))
fails(ConfigError, "128 bits", open_kek, URI.format("short"))
fails(ConfigError, "no token 'x'", open_kek, URI.format("kek").replace("token=cloister", "token=x"))
fails(ConfigError, "cannot be used", open_kek, "pkcs11:token=a;object=b?module-path=/nonexistent.so")
fails(ConfigError, "object is missing", open_kek, "pkcs11:token=a?module-path=/x.so")
fails(ConfigError, "'pin-value'", open_kek, "pkcs11:token=a;object=b?module-path=/x.so&pin-value=CANARY")
""",
    )


def test_wrong_pin_is_named_but_not_shown(token: Path) -> None:
    """A PIN that the token refuses stops the start."""
    (token / "pin").write_text("CANARY-wrong")
    run(token, 'fails(ConfigError, "refuses the PIN", open_kek, URI.format("kek"))')
