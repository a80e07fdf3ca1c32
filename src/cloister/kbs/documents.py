"""Policies and reference values that were set through the broker's administration, shared by all its brokers.

A setting that names a file wins over a document: who pins a policy by a file does not want it replaced over
the network, and the broker then refuses to take one.

=========================== ======================================================================
name                        body
=========================== ======================================================================
``resource-policy``         Cedar or Rego text: decides each release
``reference-values``        TOML: which TEEs may attest
``attestation-policy/<id>`` Rego text of Trustee's attestation service
``reference-value/<id>``    JSON: what ``query_reference_value(id)`` answers in Rego
=========================== ======================================================================
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Generic, TypeVar

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from cloister.errors import ConfigError, MalformedInput
from cloister.kbs.database import Database
from cloister.kbs.queries import Query
from cloister.kbs.records import DocumentRow

RESOURCE_POLICY = "resource-policy"
REFERENCE_VALUES = "reference-values"
ATTESTATION_POLICY = "attestation-policy/"
REFERENCE_VALUE = "reference-value/"
MAX_DOCUMENT_CHARACTERS = 1 << 18
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,127}")

T = TypeVar("T")


def check_id(identifier: str) -> str:
    """The id of a policy or reference value, if it is one.

    Raises:
        MalformedInput: empty, too long, or with other characters than letters, digits and ``_./-``.
    """
    if not _ID.fullmatch(identifier):
        raise MalformedInput(f"not an id of a policy or reference value: {identifier[:40]!r}")
    return identifier


def put_document(session: Session, name: str, body: str, now: datetime) -> int:
    """Write a document over an older one; returns its revision."""
    if len(body) > MAX_DOCUMENT_CHARACTERS:
        raise MalformedInput(f"a document has at most {MAX_DOCUMENT_CHARACTERS} characters")
    if "\0" in body:
        raise MalformedInput("a document is text, without NUL")
    row = session.get(DocumentRow, name, with_for_update=True)
    if row is None:
        row = DocumentRow(name=name, revision=0, body="", updated="")
        session.add(row)
    row.revision, row.body, row.updated = row.revision + 1, body, now.isoformat(timespec="seconds")
    return row.revision


def get_document(session: Session, name: str) -> str | None:
    """The text of a document; None if it was never set."""
    row = session.get(DocumentRow, name)
    return None if row is None else row.body


def documents_under(database: Database, prefix: str) -> dict[str, str]:
    """Every document whose name begins so, by the rest of its name."""
    pattern = re.sub("([!%_])", r"!\1", prefix) + "%"
    return {name.removeprefix(prefix): body for name, body in database.rows(_UNDER, {"pattern": pattern})}


class StoredDocument(Generic[T]):
    """The parsed form of a document as it is now, or a default while it was never set.

    A look at its revision for each use; it is parsed only when it has changed.
    """

    def __init__(self, database: Database, name: str, parse: Callable[[str], T], default: Callable[[], T]):
        self._database, self._name = database, name
        self._parse, self._default = parse, default
        self._lock = threading.Lock()
        self._seen: tuple[int, T] | None = None

    def get(self) -> T:
        """The content.

        Raises:
            ConfigError: the document is broken.
            KeyUnavailable: the database does not answer.
        """
        revisions = self._database.rows(_REVISION, {"name": self._name})
        if not revisions:
            return self._default()
        with self._lock:
            if self._seen is not None and self._seen[0] == revisions[0][0]:
                return self._seen[1]
        ((revision, body),) = self._database.rows(_DOCUMENT, {"name": self._name})
        content = self._parse(body)
        with self._lock:
            self._seen = (revision, content)
        return content


def refuse_pinned(file: str, what: str) -> None:
    """Refuse to set a document while a setting names a file.

    Raises:
        ConfigError: it does.
    """
    if file:
        raise ConfigError(f"the {what} of this broker are the file that its settings name; change that file")


_UNDER = Query(
    select(DocumentRow.name, DocumentRow.body).where(DocumentRow.name.like(bindparam("pattern"), escape="!"))
)
_REVISION = Query(select(DocumentRow.revision).where(DocumentRow.name == bindparam("name")))
_DOCUMENT = Query(select(DocumentRow.revision, DocumentRow.body).where(DocumentRow.name == bindparam("name")))
