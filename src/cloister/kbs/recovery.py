"""Owner recovery: the file KEK as *n* shares, of which any *k* give it back and fewer say nothing.

Shares are SLIP-39 mnemonics: 33 words with a checksum, to be written down or kept in safes. Whoever loses the
broker's machine but has a backup of its database and *k* shares has every key again.

It is done on the owner's machine, offline: the library protects neither its memory nor its timing.

Source: SLIP-0039; the library is its reference implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from cloister.crypto.keys import SecretKey
from cloister.errors import ConfigError, MalformedInput, MissingDependencyError

MAX_SHARES = 16
SHARE_WORDS = 33


def split_kek(kek: SecretKey, *, threshold: int, shares: int) -> list[str]:
    """``shares`` mnemonics, any ``threshold`` of which give the KEK back.

    Raises:
        ConfigError: a threshold below 2 (each share would be the key), or more shares than 16.
        MissingDependencyError: the extra ``recovery`` is not installed.
    """
    if not 2 <= threshold <= shares <= MAX_SHARES:
        raise ConfigError(f"a KEK is split into at most {MAX_SHARES} shares, of which at least 2 are needed")
    library = _library()
    (group,) = library.generate_mnemonics(1, [(threshold, shares)], kek.raw)
    made: list[str] = list(group)
    if combine_kek(made[-threshold:]) != kek:
        raise ConfigError("the shares do not give the KEK back; nothing was written")
    return made


def combine_kek(shares: Sequence[str]) -> SecretKey:
    """The KEK from as many shares as it takes; more are allowed.

    Raises:
        MalformedInput: a share with a mistake in it, shares of different splits, or too few.
        MissingDependencyError: the extra ``recovery`` is not installed.
    """
    library = _library()
    try:
        parsed = [library.Share.from_mnemonic(share) for share in _words(shares)]
        if len({share.common_parameters() for share in parsed}) > 1:
            raise MalformedInput("the shares are of different splits")
        different = sorted({share.mnemonic() for share in parsed})
        needed = parsed[0].member_threshold if parsed else 2
        if len(different) < needed:
            raise MalformedInput(f"{needed} shares are needed, there are {len(different)} different ones")
        # The library insists on exactly as many as it takes.
        return SecretKey(library.combine_mnemonics(different[:needed]))
    except (library.MnemonicError, ValueError, IndexError, KeyError) as error:
        # The library's message may repeat words of a share.
        raise MalformedInput("a share has a mistake in it", hint="compare its words") from error


def _words(shares: Sequence[str]) -> list[str]:
    return [" ".join(share.lower().split()) for share in shares]


def _library() -> ModuleType:
    try:
        import shamir_mnemonic
    except ImportError as error:
        raise MissingDependencyError(
            "recovery needs the package shamir-mnemonic", hint="pip install 'cloister[recovery]'"
        ) from error
    module: ModuleType = shamir_mnemonic
    return module
