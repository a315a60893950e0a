"""Where a life can end: at the library's failpoints, and at the points of an application and its driver that are here."""

from __future__ import annotations

import os
import threading
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sqlmq.hooks import failpoints
from sqlmq.hooks.failpoints import EXIT_CODE, failpoint

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from sqlmq.hooks.failpoints import Action

OWN_POINTS = {
    "application.wrote": "the application has written its row, and not produced its message",
    "application.produced": "it has produced its message, and its COMMIT is not called yet",
    "application.committed": "its COMMIT was answered",
    "commit.sent": "COMMIT is sent to Postgres, and its answer is never read",
}
POINTS = {**failpoints.POINTS, **OWN_POINTS}


def register() -> None:
    """Let the points be armed as failpoints are, in this process and its children."""
    failpoints.POINTS = MappingProxyType(POINTS)


def watch_commits(engine: Engine) -> None:
    """Reach ``commit.sent`` before each COMMIT of *engine* to Postgres."""
    dialect: Any = engine.dialect
    if dialect.name != "postgresql":
        return
    commit = dialect.do_commit

    def do_commit(connection: Any) -> None:
        _committing.connection = connection
        failpoint("commit.sent")
        commit(connection)

    dialect.do_commit = do_commit


def ending(point: str) -> Action:
    """Return what ends the process at *point*."""
    return _send_commit_and_exit if point == "commit.sent" else failpoints.exiting()


class _Committing(threading.local):
    """The connection on which this thread is about to commit."""

    connection: Any = None


_committing = _Committing()


def _send_commit_and_exit() -> None:
    # Past the driver, which would wait for the answer.
    server = _committing.connection.driver_connection.pgconn
    server.send_query(b"COMMIT")
    while server.flush():
        pass
    os._exit(EXIT_CODE)
