"""The watcher: applies retention, and records the ends of partitions and the positions of groups from time to time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmq.errors import SqlmqError
from sqlmq.verify.databases import connected
from sqlmq.verify.plan import ORDERS, TRIMMED
from sqlmq.verify.workload import state_dump
from sqlmq.verify.workload.recorder import recorded

if TYPE_CHECKING:
    from sqlmq.mq import MQ
    from sqlmq.verify.workload.processes import RoleProcess

_EVERY_SECONDS = 0.4


def watch(process: RoleProcess) -> None:
    """Apply retention and record the state until the process should end."""
    plan, recorder = process.plan, process.recorder
    with process.open_mq() as mq:
        while process.is_active:
            with recorded(recorder, "retain", topic=TRIMMED) as operation:
                _apply_retention(mq)
                with connected(plan.url) as conn:
                    found = state_dump.ends(conn, plan.schema, TRIMMED)
                operation.add(starts={number: start for number, (start, _) in found.items()})
            with recorded(recorder, "snapshot", topic=ORDERS) as operation, connected(plan.url) as conn:
                found = state_dump.ends(conn, plan.schema, ORDERS)
                operation.add(
                    starts={number: start for number, (start, _) in found.items()},
                    ends={number: end for number, (_, end) in found.items()},
                )
            # The positions of groups that are run move past parked messages, so positions alone prove nothing there.
            for one in (one for one in plan.group_plans() if one.mode != "run"):
                fields = {"group": one.group, "topic": one.topic}
                with recorded(recorder, "positions", **fields) as operation, connected(plan.url) as conn:
                    operation.add(positions=state_dump.positions(conn, plan.schema).get((one.group, one.topic), {}))
            process.wait(_EVERY_SECONDS)


def _apply_retention(mq: MQ) -> None:
    try:
        mq.admin.apply_retention(TRIMMED)
    except ExceptionGroup as group:
        ours, others = group.split(SqlmqError)
        if ours is None or others is not None:
            raise
        raise ours.exceptions[0] from group
