"""The server speaks German (``lc_messages``). A refused login or a missing database must be recognised all the same.

This changes a setting of the whole server while it runs.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from case import Case, NotTriedError, run, shown, text_of, until
from sqlmq import MQ, Message, SqlmqError, UnknownTopicError
from sqlmq.errors import PermissionDeniedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL

LOCALES = ("de_DE.utf8", "de_DE.UTF-8", "C.UTF-8")
"""Locales in which the server may speak German; in the last one it does if its environment has ``LANGUAGE=de``."""
GERMAN = "Division durch Null"
SOON_SECONDS, LATE_SECONDS = 3.5, 12


def judge(case: Case) -> None:
    with german(case), case.role("NOLOGIN") as no_login, case.role("LOGIN CONNECTION LIMIT 0") as limited:
        refuse(case, "no such database", case.server.set(database="missing"), names_remedy, SOON_SECONDS)
        refuse(case, "a role that may not log in", no_login, is_denied, SOON_SECONDS)
        refuse(case, "no such role", case.server.set(username="missing"), is_error, LATE_SECONDS)
        refuse(case, "no connections are left for the role", limited, names_connections, LATE_SECONDS)
        produce_to_deleted_topic(case)


def names_remedy(error: SqlmqError) -> bool:
    return "Create the database" in str(error)


def is_denied(error: SqlmqError) -> bool:
    return isinstance(error, PermissionDeniedError)


def is_error(_error: SqlmqError) -> bool:
    return True


def names_connections(error: SqlmqError) -> bool:
    return "connections" in str(error)


@contextlib.contextmanager
def german(case: Case) -> Iterator[None]:
    """Have the server speak German."""
    try:
        if not any(speaks_german(case, locale) for locale in LOCALES):
            raise NotTriedError("The server has no German messages.")
        yield
    finally:
        case.execute("ALTER SYSTEM RESET lc_messages", "SELECT pg_reload_conf()")


def speaks_german(case: Case, locale: str) -> bool:
    try:
        case.execute(f"ALTER SYSTEM SET lc_messages = '{locale}'", "SELECT pg_reload_conf()")
    except DBAPIError:
        return False  # there is no such locale
    return until(lambda: fails_in_german(case), seconds=1)


def fails_in_german(case: Case) -> bool:
    try:
        case.execute("SELECT 1 / 0")
    except DBAPIError as error:
        return GERMAN in str(error)
    return False


def refuse(
    case: Case, what: str, database: URL, is_recognised: Callable[[SqlmqError], bool], most_seconds: float
) -> None:
    began = time.monotonic()
    try:
        with MQ(text_of(database)) as mq:
            mq.admin.topics()
    except SqlmqError as error:
        seconds = time.monotonic() - began
        if not is_recognised(error):
            case.fault(f"{what}: {shown(error)} after {seconds:.1f} s")
        elif seconds > most_seconds:
            case.fault(f"{what}: only after {seconds:.1f} s")
    else:
        case.fault(f"{what}: it worked")


def produce_to_deleted_topic(case: Case) -> None:
    """Cause an error that has an SQLSTATE."""
    with MQ(case.url) as mq:
        producer = mq.producer("german")
        producer.produce(Message(b"x"))
        mq.delete_topics("german")
        try:
            producer.produce(Message(b"x"))
        except UnknownTopicError:
            return
        except SqlmqError as error:
            case.fault(f"a deleted topic: {shown(error)}")
        else:
            case.fault("a deleted topic took a message")


if __name__ == "__main__":
    run(judge, only_on="postgresql")
