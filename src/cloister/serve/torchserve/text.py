"""``ts.handler_utils.text_utils`` and ``ts.torch_handler.contractions``: English text to tokens.

torchtext is no longer maintained; what TorchServe's text handlers need of it is a tokenizer of eleven rules
and n-grams. The results are torchtext's, so that a vocabulary that was made with it goes on fitting.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

Tokenizer = Callable[[str], list[str]]

# Characters to what stands for them: apart from others, nothing, or a blank.
_MARKS: dict[str, str | int | None] = {
    "'": " '  ", '"': "", ".": " . ", ",": " , ", "(": " ( ", ")": " ) ", "!": " ! ", "?": " ? ",
    ";": " ", ":": " ",
}  # fmt: skip
_BREAK = re.compile(r"<br />")

_WILL = ("he", "how", "I", "i", "it", "she", "they", "we", "what", "who", "you")
_WOULD = ("he", "I", "i", "it", "she", "that", "there", "they", "we", "you")
_HAVE = (
    "could", "I", "i", "might", "must", "should", "so", "they", "to", "we", "what", "when", "where", "who",
    "why", "will", "would", "you",
)  # fmt: skip
_IS = ("he", "how", "it", "she", "that", "there", "what", "when", "where", "who", "why")
_ARE = ("they", "we", "what", "you")
_NOT = (
    "are", "could", "did", "does", "do", "had", "has", "have", "is", "may", "might", "must", "need", "ought",
    "should", "was", "were", "would",
)  # fmt: skip
CONTRACTION_MAP = {
    "ain't": "is not",
    "can't": "cannot",
    "shan't": "shall not",
    "sha'n't": "shall not",
    "won't": "will not",
    "'cause": "because",
    "how'd": "how did",
    "where'd": "where did",
    "let's": "let us",
    "so's": "so as",
    "ma'am": "madam",
    "o'clock": "of the clock",
    "y'all": "you all",
    "I'm": "I am",
    "i'm": "i am",
    **{f"{word}n't": f"{word} not" for word in _NOT},
    **{f"{word}'d": f"{word} would" for word in _WOULD},
    **{f"{word}'ll": f"{word} will" for word in _WILL},
    **{f"{word}'ve": f"{word} have" for word in _HAVE},
    **{f"{word}'s": f"{word} is" for word in _IS},
    **{f"{word}'re": f"{word} are" for word in _ARE},
}
"""Contraction to words. A longer form ("couldn't've") is cut after its first part, as TorchServe does."""
_CONTRACTIONS = re.compile("|".join(map(re.escape, CONTRACTION_MAP)), re.IGNORECASE)


def expand_contractions(text: str) -> str:
    """The text with contractions written out and without apostrophes."""

    def expand(match: re.Match[str]) -> str:
        found = match.group(0)
        words = CONTRACTION_MAP.get(found) or CONTRACTION_MAP[found.lower()]
        return found[0] + words[1:]

    return _CONTRACTIONS.sub(expand, text).replace("'", "")


def ngrams_iterator(token_list: Sequence[str], ngrams: int) -> Iterator[str]:
    """The tokens, then every run of 2, 3 and so on up to ``ngrams`` of them, joined by blanks."""
    yield from token_list
    for length in range(2, ngrams + 1):
        for start in range(len(token_list) - length + 1):
            yield " ".join(token_list[start : start + length])


def get_tokenizer(tokenizer: str | Tokenizer | None, language: str = "en") -> Tokenizer:
    """A function from text to tokens: ``basic_english``, one that splits at blanks (None), or one's own.

    Raises:
        ValueError: another one; spaCy, Moses and the like were torchtext's.
    """
    if tokenizer is None:
        return str.split
    if callable(tokenizer):
        return tokenizer
    if tokenizer != "basic_english" or language != "en":
        raise ValueError("only basic_english is there, and only for English (en)")
    return _basic_english


def _basic_english(text: str) -> list[str]:
    text = _BREAK.sub(" ", text.lower())
    return text.translate(str.maketrans(_MARKS)).split()
