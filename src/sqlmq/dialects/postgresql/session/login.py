"""Why the server refused a login, in any language.

libpq passes on the text of a refusal, which is in the server's language, and keeps its SQLSTATE to itself. So the login is
tried once more, and libpq writes down what comes over the wire: the state is in it. That needs Linux, and libpq 18, which
traces also while it connects. https://www.postgresql.org/docs/current/libpq-control.html#LIBPQ-PQTRACE
"""

from __future__ import annotations

import os
import re
import selectors

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

# libpq writes the severity, a colon and two spaces before what the server said, in all languages.
_ANSWER = re.compile(r"[^\s:]:  \S")
_STATE = re.compile(rb'\tErrorResponse\t.*? C "([0-9A-Z]{5})"')
_WAIT_SECONDS, _WAITS = 0.5, 20
"""How long one step of a login may take, and how many there may be."""


def state_of_refusal(error: psycopg.Error) -> str:
    """Return the SQLSTATE with which the server refused the login of *error*; "" if it did not, or none can be had."""
    connection = error.pgconn
    if connection is None or not _ANSWER.search(str(error)):
        return ""
    given = {option.keyword.decode(): option.val.decode() for option in connection.info if option.val}
    try:
        # In memory: the trace has the proof of the password in it.
        trace = os.memfd_create("sqlmq-login")
    except (AttributeError, OSError):
        return ""
    try:
        _log_in(make_conninfo(**given), trace)
        states = _STATE.findall(os.pread(trace, 65_536, 0))
    except psycopg.Error:
        return ""
    finally:
        os.close(trace)
    return states[-1].decode() if states else ""


def _log_in(conninfo: str, trace: int) -> None:
    connection = pq.PGconn.connect_start(conninfo.encode())
    try:
        connection.trace(trace)
        for _ in range(_WAITS):
            status = connection.connect_poll()
            if status in (pq.PollingStatus.OK, pq.PollingStatus.FAILED):
                return
            # A new selector each time: libpq may change the socket.
            with selectors.DefaultSelector() as selector:
                is_reading = status == pq.PollingStatus.READING
                selector.register(connection.socket, selectors.EVENT_READ if is_reading else selectors.EVENT_WRITE)
                if not selector.select(_WAIT_SECONDS):
                    return
    finally:
        connection.untrace()
        connection.finish()
