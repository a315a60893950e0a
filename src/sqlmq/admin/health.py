"""The examination behind ``Admin.diagnose``: asks the database, compares its clock with ours, collects the problems."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sqlmq.background.listener import can_receive
from sqlmq.errors import SchemaError
from sqlmq.operations.admin import doctor as admin_doctor
from sqlmq.reports import doctor
from sqlmq.reports.doctor import DoctorLimits
from sqlmq.reports.problem import Problem

if TYPE_CHECKING:
    from sqlmq.admin.access import DatabaseAccess


def examine(access: DatabaseAccess, limits: DoctorLimits | None) -> list[Problem]:
    """Return what is wrong with the database and its groups, the worst first."""
    limits = DoctorLimits() if limits is None else limits
    doctor.check_limits(limits)
    began = datetime.now(UTC)
    try:
        seen = access.read(admin_doctor.examine)
    except SchemaError as error:
        return [
            Problem(
                "schema", str(error), "Run `sqlmq db upgrade`; or, if the tables are too new, upgrade this program."
            )
        ]
    # The database told its time at some moment between the two, so the difference is uncertain by that much.
    ahead, behind = seen.now - datetime.now(UTC), seen.now - began
    off = min(behind, timedelta()) + max(ahead, timedelta())
    groups = itertools.chain.from_iterable(doctor.of_group(group, limits) for group in seen.groups)
    database = doctor.of_database(seen.database_status, -off.total_seconds(), limits)
    delayed = itertools.chain.from_iterable(doctor.of_delayed(overdue, limits) for overdue in seen.overdue)
    # A standby refuses to listen.
    do_arrive = seen.database_status.read_only is not None or _notices_arrive(access)
    notices = doctor.of_notices(seen.database_status, do_arrive=do_arrive)
    return doctor.worst_first(itertools.chain(database, groups, delayed, notices, doctor.of_unseen(seen.unseen)))


def _notices_arrive(access: DatabaseAccess) -> bool:
    """Whether a NOTIFY reaches this process; true where none is expected."""
    expects_notices = access.config.notify and access.database.can_notify
    return not expects_notices or can_receive(access.database)
