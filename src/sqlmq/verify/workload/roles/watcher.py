"""Whoever looks on: trims the topic that has limits, and notes now and then where logs end and how far groups are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmq.errors import SqlmqError
from sqlmq.verify.databases import connected
from sqlmq.verify.plan import ORDERS, TRIMMED
from sqlmq.verify.workload import state_dump
from sqlmq.verify.workload.recorder import attempted

if TYPE_CHECKING:
    from sqlmq.mq import MQ
    from sqlmq.verify.workload.processes import Life

_EVERY_SECONDS = 0.4


def watch(life: Life) -> None:
    """Look on until the life is over."""
    plan, recorder = life.plan, life.recorder
    with life.open() as mq:
        while life.goes_on:
            with attempted(recorder, "retain", topic=TRIMMED) as attempt:
                _maintain(mq)
                with connected(plan.url) as conn:
                    found = state_dump.ends(conn, plan.schema, TRIMMED)
                attempt.tell(starts={number: start for number, (start, _) in found.items()})
            with attempted(recorder, "snapshot", topic=ORDERS) as attempt, connected(plan.url) as conn:
                found = state_dump.ends(conn, plan.schema, ORDERS)
                attempt.tell(
                    starts={number: start for number, (start, _) in found.items()},
                    ends={number: end for number, (_, end) in found.items()},
                )
            # Those that are run move on past what they have set aside, which a look at positions alone can't tell.
            for one in (one for one in plan.readings() if one.mode != "run"):
                whose = {"group": one.group, "topic": one.topic}
                with attempted(recorder, "positions", **whose) as attempt, connected(plan.url) as conn:
                    attempt.tell(positions=state_dump.positions(conn, plan.schema).get((one.group, one.topic), {}))
            life.pause(_EVERY_SECONDS)


def _maintain(mq: MQ) -> None:
    try:
        mq.admin.apply_retention(TRIMMED)
    except ExceptionGroup as group:
        ours, others = group.split(SqlmqError)
        if ours is None or others is not None:
            raise
        raise ours.exceptions[0] from group
