"""One poll for many waiting consumers: what each of them would find if it polled for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlmq.model import assignment
from sqlmq.operations import membership
from sqlmq.store import claims

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection

    from sqlmq.dialects import Dialect, Position
    from sqlmq.store.claims import Claim, GroupSnapshot


class PollRequest(NamedTuple):
    """The state of a waiting consumer: its claims and its positions. It has nothing in flight and nothing buffered."""

    group_id: int
    member_id: int
    lease_seconds: float
    claims: Mapping[int, Claim]
    """By partition id."""
    positions: tuple[Position, ...]


class PollResult(NamedTuple):
    """What one consumer would find."""

    has_messages: bool
    has_changes: bool
    """Whether it should read its group."""


def poll(conn: Connection, dialect: Dialect, requests: Sequence[PollRequest], *, at_groups: bool) -> list[PollResult]:
    """Poll for all *requests* at once: for messages and, if *at_groups*, for changes of their groups. Takes no lock."""
    positions = {position for one in requests for position in one.positions}
    ready = dialect.ready(conn, positions) if positions else set()
    seen = claims.snapshots(conn, dialect, {one.group_id for one in requests}) if at_groups else {}
    settled = {id_ for id_, group in seen.items() if assignment.is_settled(group.members, group.claims)}
    return [
        PollResult(
            not ready.isdisjoint(one.positions),
            at_groups and has_changes(one, seen[one.group_id], is_settled=one.group_id in settled),
        )
        for one in requests
    ]


def has_changes(request: PollRequest, seen: GroupSnapshot, *, is_settled: bool) -> bool:
    """Whether the member has something to change in its group. *is_settled* is known of the whole group."""
    # Without this check, each of a thousand members would be compared with all others.
    if is_settled and request.claims and request.claims == seen.owned.get(request.member_id):
        return False
    view = membership.group_view(seen, request.member_id, request.lease_seconds)
    return view is None or view.has_work_for(request.claims)
