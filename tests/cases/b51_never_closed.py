"""An MQ is made for each request and never closed, as beginners do. Sessions and threads must not add up without a word."""

from __future__ import annotations

import gc
import logging
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from case import Case, run, until
from sqlmq import MQ, Message

if TYPE_CHECKING:
    from collections.abc import Callable

REQUESTS = 20
OPEN_FILES = Path("/proc/self/fd")
MOST = 20, 20, 60
"""Threads, sessions and files that may be more."""
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"


class Told(logging.Handler):
    """What the library says, by warnings and log records."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        logging.getLogger("sqlmq").addHandler(self)
        warnings.simplefilter("always")
        warnings.showwarning = self._show

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def speaks_of_closing(self) -> bool:
        return any("clos" in text.lower() for text in self.texts)

    def _show(self, message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        self.texts.append(f"{category.__name__}: {message}")


def judge(case: Case) -> None:
    told = Told()
    with MQ(case.url) as mq:
        mq.create_topic("requests", 2)
    compare(case, told, "produces", lambda: produce(case.url))
    compare(case, told, "consumes", lambda: consume(case.url))


def compare(case: Case, told: Told, what: str, request: Callable[[], None]) -> None:
    before = usage(case)
    for _ in range(REQUESTS):
        request()

    def is_little() -> bool:
        gc.collect()
        return all(now <= then + most for now, then, most in zip(usage(case), before, MOST, strict=True))

    if not until(is_little, seconds=2) and not told.speaks_of_closing():
        threads, sessions, files = (now - then for now, then in zip(usage(case), before, strict=True))
        case.fault(
            f"of {REQUESTS} MQs that were dropped and each {what} once, {threads} threads, {sessions} sessions and {files} "
            "files stay, and nothing is said"
        )


def usage(case: Case) -> tuple[int, int, int]:
    sessions = 0 if case.is_sqlite else int(case.scalar(SESSIONS) or 0)
    return threading.active_count(), sessions, len(list(OPEN_FILES.iterdir()))


def produce(url: str) -> None:
    MQ(url).producer("requests").produce(Message(b"x"))


def consume(url: str) -> None:
    MQ(url).consumer("requests", "group").poll(timeout=0)


if __name__ == "__main__":
    run(judge)
