"""Notices: telling other processes that a topic has new messages. Not needed for correctness, only for speed."""

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
    """Notify of the topics *sure*, and of those *unsure* that have live members besides *but*; return the latter.

    *others* are payloads that go along. Takes no lock of ours; NOTIFY has one of its own at commit, so this never runs
    in a transaction that does anything else.
    """
    awaited = groups.awaited_topics(conn, dialect, unsure, but) if unsure else set()
    payloads = [str(topic_id) for topic_id in sorted({*sure, *awaited})]
    if payloads or others:
        failpoint("notify.before")
        dialect.notify(conn, [*payloads, *others])
        failpoint("notify.after")
    return awaited


def topic_id(payload: str) -> int | None:
    """The topic that *payload* is about; None if it is none of ours: everybody may send to a channel."""
    return int(payload) if payload.isascii() and payload.isdecimal() and len(payload) < 20 else None
