"""Parts of the audit log, for reading."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from cloister.kbs.chain import parse_entry
from cloister.kbs.records import AuditRow


def entries_after(session: Session, after: int, limit: int) -> list[dict[str, Any]]:
    """At most ``limit`` entries after a sequence number, each checked against its own hash.

    Raises:
        AuditBroken: one was edited.
    """
    query = select(AuditRow).where(AuditRow.sequence > after).order_by(AuditRow.sequence).limit(limit)
    return [asdict(parse_entry(row.sequence, row.body, row.hash)) for row in session.scalars(query)]
