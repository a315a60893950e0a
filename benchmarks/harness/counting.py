"""Counts the statements that an engine sends: by the driver's cursors on Postgres, by SQLite itself there."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy import event

if TYPE_CHECKING:
    from sqlalchemy import Engine


def count_statements(engine: Engine) -> itertools.count[int]:
    """A counter that goes on with each statement on the connections that *engine* hands out from now on."""
    counter = itertools.count()

    class CountingCursor(psycopg.Cursor[Any]):
        def execute(self, *arguments: Any, **options: Any) -> CountingCursor:  # noqa: ANN401 - psycopg's
            next(counter)
            return super().execute(*arguments, **options)

    def handed_out(connection: Any, *_: object) -> None:  # noqa: ANN401 - of either driver
        if isinstance(connection, psycopg.Connection):
            connection.cursor_factory = CountingCursor
        else:
            connection.set_trace_callback(lambda _statement: next(counter))

    event.listen(engine, "checkout", handed_out)
    return counter
