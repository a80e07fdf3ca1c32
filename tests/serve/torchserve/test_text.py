"""English text to tokens, as torchtext did it."""

from __future__ import annotations

import pytest

from cloister.serve.torchserve.text import expand_contractions, get_tokenizer, ngrams_iterator


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("You can now install TorchText using pip!", "you can now install torchtext using pip !"),
        ("A 'b' \"c\".<br />D; e: (f)?", "a ' b ' c . d e ( f ) ?"),
        ("  x,\ty\n", "x , y"),
        ("", ""),
    ],
)
def test_basic_english(text: str, tokens: str) -> None:
    """Marks stand apart, quotation marks go, colons and semicolons are blanks."""
    tokenize = get_tokenizer("basic_english")
    assert tokenize(text) == tokens.split()


def test_other_tokenizers() -> None:
    """No name splits at blanks, a function is taken as it is, and what was torchtext's is refused."""
    assert get_tokenizer(None)("a b") == ["a", "b"]
    assert get_tokenizer(list)("ab") == ["a", "b"]
    for name, language in (("spacy", "en"), ("basic_english", "de")):
        with pytest.raises(ValueError, match="basic_english"):
            get_tokenizer(name, language)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("I don't", "I do not"),
        ("you're what's left", "you are what is left"),
        ("HE'S here", "He is here"),
        ("couldn't've", "could notve"),
        ("shan't, won't, ain't", "shall not, will not, as not"),
        ("o'clock, ma'am, y'all", "of the clock, madam, you all"),
        ("rock 'n' roll", "rock n roll"),
    ],
)
def test_contractions(text: str, expanded: str) -> None:
    """Contractions are written out as TorchServe does, with what it makes of the longer ones."""
    assert expand_contractions(text) == expanded


def test_ngrams() -> None:
    """The tokens first, then the pairs, then the triples."""
    assert list(ngrams_iterator(["here", "we", "are"], 2)) == ["here", "we", "are", "here we", "we are"]
    assert list(ngrams_iterator(["a"], 3)) == ["a"]
