"""``java.util.Properties`` text: the syntax of TorchServe's ``config.properties``.

Source: Java SE 17, java.util.Properties.load(Reader).

- A natural line ends with LF, CR, CRLF or the end of the file.
- White space is space, tab and form feed. A line of nothing else is skipped, and so is one whose first other
  character is ``#`` or ``!``; a comment cannot be continued.
- A line that ends with an odd number of backslashes goes on in the next one, without its leading white space.
- A key ends at the first ``=``, ``:`` or white space without a backslash before it. White space, at most one
  ``=`` or ``:``, and white space again separate it from its value.
- ``\\t \\n \\r \\f`` and ``\\uXXXX`` are what they are elsewhere; a backslash before another character goes.
- A key that appears twice has its last value. Bytes are ISO 8859-1 for Java; valid UTF-8 is taken as that.
"""

from __future__ import annotations

import re

from cloister.errors import MalformedInput

MAX_BYTES = 1 << 20
_ENDS = re.compile(r"\r\n|\r|\n")
_BLANKS = " \t\f"
_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_HEX = re.compile(r"[0-9A-Fa-f]{4}")


def parse_properties(raw: bytes) -> dict[str, str]:
    """Keys and values, in the file's order.

    Raises:
        MalformedInput: a ``\\u`` without four hexadecimal digits, or more than ``MAX_BYTES``.
    """
    if len(raw) > MAX_BYTES:
        raise MalformedInput(f"properties have {len(raw)} bytes, expected at most {MAX_BYTES}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    found: dict[str, str] = {}
    for line in _logical_lines(text):
        key, value = map(_unescape, _split(line))
        found.pop(key, None)
        found[key] = value
    return found


def render_properties(values: dict[str, str]) -> str:
    """Text that ``parse_properties``, and Java, read back as the same keys and values."""
    return "".join(f"{_escape(key, key=True)}={_escape(value)}\n" for key, value in values.items())


def _logical_lines(text: str) -> list[str]:
    lines: list[str] = []
    pending: str | None = None
    for natural in _ENDS.split(text):
        line = natural.lstrip(_BLANKS)
        if pending is None and (not line or line[0] in "#!"):
            continue
        joined = (pending or "") + line
        if (len(line) - len(line.rstrip("\\"))) % 2:
            pending = joined[:-1]
        else:
            pending = None
            lines.append(joined)
    if pending:
        lines.append(pending)
    return lines


def _split(line: str) -> tuple[str, str]:
    end = 0
    while end < len(line) and line[end] not in "=:" + _BLANKS:
        end += 2 if line[end] == "\\" else 1
    key, rest = line[:end], line[end:].lstrip(_BLANKS)
    if rest[:1] in ("=", ":"):
        rest = rest[1:].lstrip(_BLANKS)
    return key, rest


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    out: list[str] = []
    at = 0
    while at < len(text):
        char = text[at]
        at += 1
        if char != "\\":
            out.append(char)
            continue
        if at == len(text):
            break  # a lone backslash at the very end of the file
        char = text[at]
        at += 1
        if char == "u":
            digits = text[at : at + 4]
            if not _HEX.fullmatch(digits):
                raise MalformedInput("properties: \\u without four hexadecimal digits")
            out.append(chr(int(digits, 16)))
            at += 4
        else:
            out.append(_ESCAPES.get(char, char))
    # Java's strings are UTF-16: two escapes can be the halves of one character.
    return "".join(out).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _escape(text: str, *, key: bool = False) -> str:
    out: list[str] = []
    for at, char in enumerate(text):
        if char in "\t\n\r\f":
            out.append("\\" + "tnrf"["\t\n\r\f".index(char)])
        elif char in "=:#!\\" or (char == " " and (key or at == 0)):
            out.append("\\" + char)
        elif " " <= char <= "~":
            out.append(char)
        else:
            units = char.encode("utf-16-be", "surrogatepass")
            out.extend(f"\\u{units[i]:02X}{units[i + 1]:02X}" for i in range(0, len(units), 2))
    return "".join(out)
