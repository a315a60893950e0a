"""Reads the state of the database with SQL of its own: parts of it during a run, all of it at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from sqlmq.verify.databases import connected, microseconds_of
from sqlmq.verify.history import FINAL_FILE, encoded
from sqlmq.verify.workload.application_tables import EFFECT, ROW
from sqlmq.verify.workload.payloads import hash_of, id_of, key_of
from sqlmq.verify.workload.sandbox import qualified_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Connection

    from sqlmq.verify.plan import Plan

_PARTITIONS = """
    SELECT t.name, p.number, p.start_offset, coalesce(
        (SELECT max(m.msg_offset) + 1 FROM {message} m WHERE m.partition_id = p.id AND m.msg_offset >= p.start_offset),
        p.start_offset
    )
    FROM {topic} t JOIN {partition} p ON p.topic_id = t.id ORDER BY t.name, p.number
"""
_POSITIONS = """
    SELECT g.name, t.name, p.number, max(o.committed_offset)
    FROM {group_offset} o JOIN {group} g ON g.id = o.group_id JOIN {topic} t ON t.id = g.topic_id
    JOIN {partition} p ON p.id = o.partition_id
    GROUP BY g.name, t.name, p.number
"""
_MESSAGES = """
    SELECT t.name, p.number, m.msg_offset, m.value, m.key, {created_at}
    FROM {message} m JOIN {partition} p ON p.id = m.partition_id JOIN {topic} t ON t.id = p.topic_id
    WHERE m.msg_offset >= p.start_offset ORDER BY t.name, p.number, m.msg_offset
"""
_PARKED = """
    SELECT g.name, t.name, p.number, a.msg_offset, a.state, a.attempts
    FROM {parked} a JOIN {group} g ON g.id = a.group_id JOIN {topic} t ON t.id = g.topic_id
    JOIN {partition} p ON p.id = a.partition_id
"""
_EVICTIONS = """
    SELECT g.name, t.name, p.number, e.kind, e.from_offset, e.to_offset
    FROM {eviction} e JOIN {group} g ON g.id = e.group_id JOIN {topic} t ON t.id = g.topic_id
    JOIN {partition} p ON p.id = e.partition_id
"""
_EFFECTS = "SELECT group_name, m, count(*) FROM {effect} GROUP BY group_name, m"
_STAGED = "SELECT value FROM {staged}"
_SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = :tag AND pid <> pg_backend_pid()"


def ends(conn: Connection, schema: str | None, topic: str) -> dict[int, list[int]]:
    """Read the start and end of each partition of *topic*, in one statement."""
    rows = _rows(conn, schema, _PARTITIONS)
    return {number: [start, end] for name, number, start, end in rows if name == topic}


def positions(conn: Connection, schema: str | None) -> dict[tuple[str, str], dict[int, int]]:
    """Read the position of each group in each partition, by group and topic, in one statement."""
    found: dict[tuple[str, str], dict[int, int]] = {}
    for group, topic, number, offset in _rows(conn, schema, _POSITIONS):
        found.setdefault((group, topic), {})[number] = offset
    return found


def largest_lag(conn: Connection, schema: str | None, topic: str) -> int:
    """Read the lag of the group that is furthest behind in *topic*."""
    found = ends(conn, schema, topic)
    lags = [
        sum(end - read.get(number, start) for number, (start, end) in found.items())
        for (_, name), read in positions(conn, schema).items()
        if name == topic
    ]
    return max(lags, default=0)


def dump(plan: Plan) -> None:
    """Write the final state to the plan's directory."""
    with (plan.directory / FINAL_FILE).open("wb") as file, connected(plan.url) as conn:
        for row in _final(conn, plan):
            file.write(encoded(row))


def _final(conn: Connection, plan: Plan) -> Iterator[Mapping[str, object]]:
    schema = plan.schema
    for topic, partition, start, end in _rows(conn, schema, _PARTITIONS):
        yield {"row": "partition", "topic": topic, "partition": partition, "start": start, "end": end}
    for topic, partition, offset, value, key, at in _rows(conn, schema, _MESSAGES):
        slot = {"row": "message", "topic": topic, "partition": partition, "offset": offset}
        yield slot | {"m": id_of(bytes(value)), "h": hash_of(bytes(value)), "key": key_of(key), "at": int(at)}
    for group, topic, partition, offset in _rows(conn, schema, _POSITIONS):
        yield {"row": "position", "group": group, "topic": topic, "partition": partition, "offset": offset}
    for table in (EFFECT, ROW):
        for group, m, count in _rows(conn, schema, _EFFECTS, effect=table):
            yield {"row": "effect", "group": group, "m": m, "count": count}
    for group, topic, partition, offset, state, attempts in _rows(conn, schema, _PARKED):
        slot = {"row": "parked", "group": group, "topic": topic, "partition": partition, "offset": offset}
        yield slot | {"state": state, "attempts": attempts}
    for group, topic, partition, kind, start, end in _rows(conn, schema, _EVICTIONS):
        slot = {"row": "eviction", "group": group, "topic": topic, "partition": partition}
        yield slot | {"kind": kind, "start": start, "end": end}
    for (value,) in _rows(conn, schema, _STAGED):
        yield {"row": "staged", "m": id_of(bytes(value)) or "?"}
    if plan.is_postgres:
        sessions = conn.execute(text(_SESSIONS), {"tag": plan.tag}).scalar_one()
        yield {"row": "residue", "what": "sessions of the run", "count": sessions, "most": 0}
    yield {"row": "end"}


def _rows(
    conn: Connection, schema: str | None, statement: str, **more: str
) -> Iterator[tuple[Any, ...]]:  # as the statement selects
    tables = ("topic", "partition", "message", "group", "group_offset", "parked", "eviction", "staged")
    names = {name: qualified_name(conn, schema, f"sqlmq_{name}") for name in tables}
    names |= {name: qualified_name(conn, schema, table) for name, table in more.items()}
    names["created_at"] = microseconds_of(conn, "m.created_at")
    yield from map(tuple, conn.execute(text(statement.format(**names))))
