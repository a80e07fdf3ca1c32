"""The audit log as a file that can be checked without the database: JSON lines, one object each.

============== ============================================================================================
first member   the rest of the line
============== ============================================================================================
``format``     first line: ``cloister-audit/1``; ``after`` and ``hash``: the entry that the file begins after
``entry``      an entry of the chain (``cloister.kbs.chain``), and its ``hash``
``checkpoint`` a checkpoint (``cloister.kbs.checkpoints``); stands after the entry that it speaks of
============== ============================================================================================

The last line is a checkpoint of the last entry, or the file was cut short. The broker's public audit key is
not in the file: an auditor has it from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric import ed25519

from cloister.errors import ConfigError, MalformedInput
from cloister.kbs.chain import GENESIS, AuditBroken, AuditSummary, Chain, Head
from cloister.kbs.checkpoints import Checkpoint

FORMAT = "cloister-audit/1"
MAX_LINE_CHARACTERS = 1 << 20


def verify_export(
    lines: Iterable[str],
    key: ed25519.Ed25519PublicKey,
    *,
    checkpoints: Iterable[Checkpoint] = (),
    open_end: bool = False,
) -> AuditSummary:
    """Establish that a file is an unbroken part of this broker's log, up to its last line.

    Args:
        checkpoints: of the same log, from earlier exports: the file must not contradict them.
        open_end: it is still being written: its last lines may have no checkpoint yet.
    Raises:
        MalformedInput: not such a file.
        AuditBroken: an entry was edited, removed, moved or added, or the file or the log was cut short.
        BadSignature: a checkpoint was not signed with this broker's audit key.
    """
    chain, ended = _read(lines, key, checkpoints)
    if not ended and not open_end:
        raise AuditBroken("audit export: it was cut short, its last line is no checkpoint")
    return chain.summary(signed=True)


def read_open_log(lines: Iterable[str], key: ed25519.Ed25519PublicKey) -> Head:
    """Where a file of this form ends that is still being written: its last lines may have no checkpoint yet.

    Raises:
        MalformedInput, AuditBroken, BadSignature: as ``verify_export``.
    """
    chain, _ = _read(lines, key, ())
    return Head(chain.sequence, chain.hash)


def _read(
    lines: Iterable[str], key: ed25519.Ed25519PublicKey, checkpoints: Iterable[Checkpoint]
) -> tuple[Chain, bool]:
    """The chain of a file, and whether its last line is a checkpoint."""
    numbered = enumerate((line for line in lines if line.strip()), 1)
    first = _object(*next(numbered, (1, "")))
    if first.get("format") != FORMAT:
        raise MalformedInput(f"audit export: the first line does not say {FORMAT}")
    chain = Chain(Head(_number(first, "after"), _text(first, "hash")))
    if chain.sequence == 0 and chain.hash != GENESIS:
        raise AuditBroken("audit export: it begins with another hash than a log does")
    chain.expect(checkpoints, key)
    ended = False
    for number, line in numbered:
        document = _object(number, line)
        if "checkpoint" in document:
            checkpoint = Checkpoint.from_mapping(document["checkpoint"])
            if checkpoint.sequence != chain.sequence:
                raise AuditBroken(f"audit export: line {number} is a checkpoint of another entry")
            chain.expect([checkpoint], key)
            ended = True
        else:
            chain.add(chain.sequence + 1, _canonical(document), _text(document, "hash"))
            ended = False
    return chain, ended


def verify_export_file(
    path: Path, key: ed25519.Ed25519PublicKey, *, checkpoints: Iterable[Checkpoint] = ()
) -> AuditSummary:
    """``verify_export`` of a file.

    Raises:
        ConfigError: unreadable; otherwise as ``verify_export``.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return verify_export(file, key, checkpoints=checkpoints)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}") from error


def read_checkpoints(path: Path) -> list[Checkpoint]:
    """Checkpoints from a file: an export, or one checkpoint as JSON per line.

    Raises:
        ConfigError: unreadable.
        MalformedInput: not such a file, or none in it.
    """
    try:
        with path.open(encoding="utf-8") as file:
            documents = [_object(number, line) for number, line in enumerate(file, 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read checkpoints from {path}") from error
    found = [
        Checkpoint.from_mapping(document.get("checkpoint", document))
        for document in documents
        if "entry" not in document and "format" not in document
    ]
    if not found:
        raise MalformedInput(f"{path} holds no checkpoint")
    return found


def _object(number: int, line: str) -> dict[str, Any]:
    if len(line) > MAX_LINE_CHARACTERS:
        raise MalformedInput(f"audit export: line {number} is too long")
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MalformedInput(f"audit export: line {number} is not JSON") from error
    if not isinstance(document, dict):
        raise MalformedInput(f"audit export: line {number} is not a JSON object")
    return document


def _canonical(document: dict[str, Any]) -> str:
    if document.keys() != {"entry", "hash"} or not isinstance(document["entry"], dict):
        raise MalformedInput("audit export: a line is neither an entry nor a checkpoint")
    try:
        return rfc8785.dumps(document["entry"]).decode("utf-8")
    except (rfc8785.CanonicalizationError, RecursionError) as error:
        raise MalformedInput("audit export: an entry has no canonical form") from error


def _number(document: dict[str, Any], name: str) -> int:
    value = document.get(name)
    if type(value) is not int or value < 0:
        raise MalformedInput(f"audit export: {name} is not a number")
    return value


def _text(document: dict[str, Any], name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str):
        raise MalformedInput(f"audit export: {name} is not text")
    return value
