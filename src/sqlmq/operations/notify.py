"""Notify other processes that a topic has new messages. Only speed depends on it, not correctness."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmq.hooks.failpoints import failpoint
from sqlmq.store import groups

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect


def notify(
    conn: Connection,
    dialect: Dialect,
    *,
    sure: Collection[int],
    unsure: Collection[int],
    but: Collection[int],
    others: Collection[str] = (),
) -> set[int]:
    """Send notifications for the topics *sure*, and for those topics *unsure* that have live members besides *but*.

    Returns the latter topics.

    *others* are further payloads. Takes no lock of ours. NOTIFY takes one of its own at commit, so no other work shares
    the transaction.
    """
    awaited = groups.awaited_topics(conn, dialect, unsure, but) if unsure else set()
    payloads = [str(topic_id) for topic_id in sorted({*sure, *awaited})]
    if payloads or others:
        failpoint("notify.before")
        dialect.notify(conn, [*payloads, *others])
        failpoint("notify.after")
    return awaited


def topic_id(payload: str) -> int | None:
    """Return the topic id in *payload*, or None for a payload of another program: any session may send to a channel."""
    return int(payload) if payload.isascii() and payload.isdecimal() and len(payload) < 20 else None
