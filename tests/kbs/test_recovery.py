"""Owner recovery: any k of n shares give the KEK back, fewer and spoiled ones do not."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.crypto.keys import SecretKey
from cloister.errors import CloisterError, ConfigError, MalformedInput
from cloister.kbs.kek import FileKek
from cloister.kbs.recovery import SHARE_WORDS, combine_kek, split_kek

KEK = SecretKey(bytes(range(32)))
SHARES = split_kek(KEK, threshold=3, shares=5)


def test_any_three_of_five_give_the_kek_back() -> None:
    """Every combination of three, in any order, and all five."""
    for chosen in itertools.permutations(SHARES, 3):
        assert combine_kek(chosen) == KEK
    assert combine_kek(SHARES) == KEK


def test_two_of_five_say_nothing() -> None:
    """Too few, and the same share several times, are refused; the message says how many it takes."""
    for chosen in (*itertools.combinations(SHARES, 2), [SHARES[0]] * 3, []):
        with pytest.raises(MalformedInput, match="shares are needed"):
            combine_kek(chosen)


def test_shares_are_words_and_not_the_key() -> None:
    """A share has 33 words; upper case and line breaks do not matter; the KEK's bytes are in none."""
    assert {len(share.split()) for share in SHARES} == {SHARE_WORDS}
    assert combine_kek([share.upper().replace(" ", "\n ") for share in SHARES[:3]]) == KEK


def test_shares_of_two_splits_do_not_mix() -> None:
    """Shares of another split of the same KEK are told apart."""
    other = split_kek(KEK, threshold=3, shares=5)
    with pytest.raises(MalformedInput, match="different splits"):
        combine_kek([*SHARES[:2], other[2]])


def test_a_wrong_word_is_found_and_not_repeated() -> None:
    """One exchanged word in any place is found, and the message has no word of the share."""
    words = SHARES[0].split()
    for at in range(SHARE_WORDS):
        spoiled = [*words[:at], "zero" if words[at] != "zero" else "academic", *words[at + 1 :]]
        with pytest.raises(MalformedInput) as caught:
            combine_kek([" ".join(spoiled), *SHARES[1:3]])
        assert words[5] not in str(caught.value)


@pytest.mark.parametrize(("threshold", "shares"), [(1, 1), (1, 3), (4, 3), (0, 5), (2, 17)])
def test_senseless_splits_are_refused(threshold: int, shares: int) -> None:
    """A share that is the whole key, more shares needed than there are, and too many."""
    with pytest.raises(ConfigError):
        split_kek(KEK, threshold=threshold, shares=shares)


@given(st.lists(st.text(max_size=60), max_size=4))
@settings(max_examples=60)
def test_hostile_shares(shares: list[str]) -> None:
    """Whatever is given as shares is refused with one of our errors."""
    with pytest.raises(CloisterError):
        combine_kek(shares)


def test_a_lost_kek_file_comes_back(tmp_path: Path) -> None:
    """The file put together from shares opens what the lost one wrapped."""
    kek = FileKek(tmp_path / "kek")
    wrapped = kek.wrap(SecretKey.generate(), "r")
    shares = split_kek(kek.newest(), threshold=2, shares=3)
    (tmp_path / "kek").unlink()
    (tmp_path / "kek").touch(0o600)
    (tmp_path / "kek").write_bytes(combine_kek(shares[1:]).raw)
    assert FileKek(tmp_path / "kek").unwrap(wrapped, "r")
