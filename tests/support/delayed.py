"""Delayed messages, which a test makes due by moving their moment into the past, so that it does not wait."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, text

from tests.support.queue_state import QueueState
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest

LONG = 3_600.0
"""Seconds that no test takes."""
PAST = datetime(2020, 1, 1, tzinfo=UTC)
FUTURE = datetime(2100, 1, 1, tzinfo=UTC)


class Staged:
    """The table of staged messages."""

    def __init__(self, engine: Engine, database: DatabaseUnderTest) -> None:
        self._engine = engine
        self._state = QueueState(engine, database.schema)
        self.table = f"{database.schema}.sqlmq_staged" if database.schema else "sqlmq_staged"
        self._is_postgres = database.is_postgres

    def __len__(self) -> int:
        return self._state.staged()

    def make_due(self, *ids: int) -> None:
        """Make messages, or all of them, due since long ago, in the same order as before."""
        earlier = (
            "deliver_at - interval '1000 years'" if self._is_postgres else f"deliver_at - {1_000 * 365 * 86_400}000000"
        )
        # The upper part of a message's id is the id of its row.
        which = f" WHERE id IN ({', '.join(str(id_ >> 24) for id_ in ids)})" if ids else ""
        self._state.execute(f"UPDATE sqlmq_staged SET deliver_at = {earlier}{which}")

    def now(self) -> datetime:
        """Return this moment by the database's clock."""
        with self._engine.connect() as connection:
            return now(connection)

    def until_all_moved(self) -> None:
        until(lambda: len(self) == 0, "everything in the log")


def now(connection: Connection) -> datetime:
    """Return this moment by the database's clock."""
    if connection.dialect.name == "postgresql":
        moment: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        return moment.astimezone(UTC)
    days: float = connection.execute(text("SELECT julianday('now') - 2440587.5")).scalar_one()
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=days)


def without_polling(mq: MQ) -> MQ:
    """Keep the scheduler of *mq* from polling each second, and return *mq*. It still wakes up for messages it knows of."""
    mq._background.scheduler._poll_seconds = LONG
    return mq


def look_now(mq: MQ) -> None:
    """Move what is due in this thread, as the scheduler does in its own."""
    scheduler: Any = mq._background.scheduler
    move: Callable[[], None] = scheduler._move_due
    move()
