"""The file that says who is known: what is right in it, and that everything else is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ConfigError
from cloister.serve.access.identities import read_identities
from cloister.serve.access.issuers import Issuer, check_issuer_url

GOOD = """
[[issuer]]
url = "https://login.example"
audience = ["a", "b"]
algorithms = ["ES256"]
groups = { x = "y" }

[[certificate]]
fingerprint = "%s"
name = "robot"
""" % ("ab" * 32)


def test_the_example(tmp_path: Path) -> None:
    """Issuers and certificates come out of the file as they stand in it."""
    file = tmp_path / "identities.toml"
    file.write_text(GOOD)
    found = read_identities(file)
    assert (found.issuer[0].audiences, found.issuer[0].groups) == (("a", "b"), {"x": "y"})
    assert found.certificate[0].key == "fingerprint:" + "ab" * 32


@pytest.mark.parametrize(
    "text",
    [
        "[[issuer]]\nurl = 'https://x'",
        "[[issuer]]\nurl = ''\naudience = 'a'",
        "[[issuer]]\nurl = 'https://x'\naudience = ''",
        "[[issuer]]\nurl = 'https://x'\naudience = []",
        "[[issuer]]\nurl = 'http://x.example'\naudience = 'a'",
        "[[issuer]]\nurl = 'https://x'\naudience = 'a'\nalgorithms = ['HS256']",
        "[[issuer]]\nurl = 'https://x'\naudience = 'a'\nalgorithm = ['ES256']",
        "[[issuer]]\nurl = 'https://x'\naudience = 'a'\njwks_url = 'http://x.example'",
        "[[issuer]]\nurl = 'https://x'\naudience = 'a'\njwks_url = 'https://x'\njwks_file = 'y'",
        "[[issuer]]\nurl = 'https://x'\naudience = 'a'\nca = '/nonexistent'",
        "[[issuer]]\nurl = 'https://x'\naudience = 'a'\nclock_skew_s = -1",
        "[[issuer]]\nurl = 'https://x'\naudience = 'a'\nclock_skew_s = nan",
        "[[issuer]]\nurl = 'https://x'\naudience = 'a'\n" * 2,
        "[[certificate]]\nname = 'x'",
        "[[certificate]]\nuri = 'x'\ndns = 'y'",
        "[[certificate]]\nfingerprint = 'AB'",
        "[[certificate]]\nurn = 'x'",
        "[issuer]\nurl = 'https://x'",
        "x = 1",
        "[[",
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str) -> None:
    """A typing mistake, or what would let strangers in, is an error."""
    file = tmp_path / "identities.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"identities\.toml"):
        read_identities(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """A missing file is an error."""
    with pytest.raises(ConfigError, match="cannot read"):
        read_identities(tmp_path / "none.toml")


@given(st.binary(max_size=200))
def test_garbage(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    """Arbitrary bytes are a file or an error of configuration."""
    file = tmp_path_factory.mktemp("i") / "identities.toml"
    file.write_bytes(raw)
    try:
        assert read_identities(file).issuer == ()
    except ConfigError:
        return


def test_addresses() -> None:
    """Keys come over https, or from this machine."""
    for right in ("https://x.example/keys", "http://127.0.0.1:9/keys", "http://localhost/keys"):
        check_issuer_url(right)
    for wrong in (
        "http://x.example",
        "ftp://127.0.0.1",
        "file:///etc",
        "http://127.0.0.1.example",
        "https://",
    ):
        with pytest.raises(ConfigError):
            check_issuer_url(wrong)
    Issuer(url="anything", audience="a", jwks_file="keys.json").check()
