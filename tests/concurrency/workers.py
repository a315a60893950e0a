"""Producers and consumers for processes that may be killed at any moment, and the journals they leave behind.

A journal is a file of one process, one JSON array per line, each line written in a single call: what was written before
`kill -9` is there afterwards. Times are of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import signal
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from sqlmq import MQ, FencedError, Message

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import BaseContext
    from pathlib import Path

TOPIC, GROUP = "orders", "billing"
PARTITIONS = 6
POLL_MESSAGES = 20

PRODUCED, DELIVERED, COMMITTED, TROUBLE, FAILED = "produced", "delivered", "committed", "trouble", "failed"


@dataclass(frozen=True)
class Place:
    """Where the queue is, and how its consumers behave."""

    url: str
    schema: str | None = None
    lease_seconds: float = 2.0

    def open(self, **options: Any) -> MQ:
        return MQ(self.url, schema=self.schema, lease_seconds=self.lease_seconds, poll_max_seconds=0.2, **options)


class Journal:
    """Appends lines to a file of this process's own. May be shared by its threads."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)

    def write(self, *facts: object) -> None:
        os.write(self._file, json.dumps(facts).encode() + b"\n")


class Trouble(logging.Handler):
    """Journals what the library warns of: that a consumer lost partitions, or could not reach the database."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.WARNING)
        self._journal = journal
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        self._journal.write(TROUBLE, record.getMessage())


def context() -> BaseContext:
    """How processes are started: from one that has imported everything and opened nothing, where there is one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload([__name__, "sqlmq.dialects.postgresql.dialect", "sqlmq.dialects.sqlite.dialect"])
    return forkserver


def end_at_once(exit_code: int) -> NoReturn:
    """End this process as a crash does: nothing is closed, flushed or sent."""
    os._exit(exit_code)


def fork(work: Callable[[], None]) -> int:
    """Do *work* in a forked child; return its process id."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - told, and judged by the exit code
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(100)
        os._exit(0)
    return pid


def ended(pid: int) -> int:
    """Wait for a child, and return its exit code."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def in_child(work: Callable[[], None]) -> int:
    """Do *work* in a forked child; return its exit code."""
    return ended(fork(work))


def produce(place: Place, journal_path: Path, until: float, pause_seconds: float) -> None:
    """Produce one to ten messages at a time until the moment *until*; journal what was acknowledged."""
    journal = Journal(journal_path)
    logging.getLogger("sqlmq").addHandler(Trouble(journal))
    chosen = random.Random(os.getpid())
    pause = threading.Event()
    count = 0
    try:
        with place.open() as mq:
            producer = mq.producer(TOPIC)
            while time.monotonic() < until:
                batch = []
                for _ in range(chosen.randint(1, 10)):
                    count += 1
                    key = chosen.choice([None, b"a", b"b", b"c", b"d", b"e", b"f", b"g"])
                    batch.append(Message(f"{os.getpid()}/{count}".encode(), key))
                results = [producer.produce(batch[0])] if len(batch) == 1 else producer.produce_many(batch)
                for message, result in zip(batch, results, strict=True):
                    journal.write(PRODUCED, result.partition, result.offset, message.value.decode())
                pause.wait(chosen.uniform(0, 2 * pause_seconds))
    except Exception as error:
        journal.write(FAILED, f"{type(error).__name__}: {error}")
        raise


def consume(place: Place, journal_path: Path, until: float) -> None:
    """Consume until SIGTERM, or the moment *until*; journal each message before the next is asked for."""
    journal = Journal(journal_path)
    trouble = Trouble(journal)
    logging.getLogger("sqlmq").addHandler(trouble)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    chosen = random.Random(os.getpid())
    next_offsets: dict[int, int] = {}
    try:
        with place.open() as mq, mq.consumer(TOPIC, GROUP) as consumer:
            while not ended.is_set() and time.monotonic() < until:
                troubles = trouble.count
                asked_at = time.monotonic()
                messages = consumer.poll(chosen.randint(1, POLL_MESSAGES), timeout=0.2)
                got_at = time.monotonic()
                if trouble.count != troubles:
                    next_offsets.clear()
                if messages:
                    facts = [(message.partition, message.offset, message.value.decode()) for message in messages]
                    journal.write(DELIVERED, asked_at, got_at, facts)
                    for message in messages:
                        assert message.partition is not None
                        assert message.offset is not None
                        next_offsets[message.partition] = message.offset + 1
                if messages and chosen.random() < 0.3:
                    commit(consumer, journal, next_offsets, trouble)
    except Exception as error:
        journal.write(FAILED, f"{type(error).__name__}: {error}")
        raise


def commit(consumer: Any, journal: Journal, next_offsets: dict[int, int], trouble: Trouble) -> None:
    """Commit, and journal how far, for the partitions that are certainly still this consumer's."""
    troubles = trouble.count
    try:
        consumer.commit()
    except FencedError as error:
        journal.write(TROUBLE, str(error))
        next_offsets.clear()
        return
    if trouble.count != troubles:
        next_offsets.clear()
    owned = set(consumer.partitions)
    still = {partition: offset for partition, offset in next_offsets.items() if partition in owned}
    journal.write(COMMITTED, time.monotonic(), list(still.items()))


def produce_and_consume(place: Place, journal_path: Path, threads: int, messages: int) -> None:
    """Half of the *threads* produce *messages* each, half consume until all of the topic was handed out."""
    journal = Journal(journal_path)
    logging.getLogger("sqlmq").addHandler(Trouble(journal))
    with place.open() as mq:

        def run(number: int) -> None:
            try:
                if number % 2:
                    producer = mq.producer(TOPIC)
                    for count in range(messages):
                        value = f"{os.getpid()}/{number}/{count}"
                        result = producer.produce(Message(value.encode()))
                        journal.write(PRODUCED, result.partition, result.offset, value)
                    return
                with mq.consumer(TOPIC, GROUP) as consumer:
                    while mq.admin.describe_group(TOPIC, GROUP).lag or not produced_everything(mq):
                        asked_at = time.monotonic()
                        got = consumer.poll(POLL_MESSAGES, timeout=0.1)
                        facts = [(message.partition, message.offset, message.value.decode()) for message in got]
                        journal.write(DELIVERED, asked_at, time.monotonic(), facts)
            except Exception as error:  # noqa: BLE001 - journalled, and so told to the test
                journal.write(FAILED, f"{type(error).__name__}: {error}")

        def produced_everything(mq: MQ) -> bool:
            return mq.admin.describe_topic(TOPIC).messages >= messages * EVERY_PRODUCER

        running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()


EVERY_PRODUCER = 8
"""How many threads produce in `produce_and_consume`, over all processes: 4 processes with 2 of 4 threads each."""


@dataclass
class Story:
    """One process's journal, read back."""

    name: str
    was_killed: bool = False
    produced: list[tuple[int, int, str]] = field(default_factory=list)
    polls: list[tuple[float, float, list[tuple[int, int, str]]]] = field(default_factory=list)
    commits: list[tuple[float, dict[int, int]]] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, *, was_killed: bool = False) -> Story:
        story = cls(path.stem, was_killed)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        # The last line of a killed process can be torn.
        lines = text[: text.rfind("\n") + 1].splitlines() if was_killed else text.splitlines()
        for line in lines:
            kind, *facts = json.loads(line)
            if kind == PRODUCED:
                story.produced.append((facts[0], facts[1], facts[2]))
            elif kind == DELIVERED:
                story.polls.append((facts[0], facts[1], [(one[0], one[1], one[2]) for one in facts[2]]))
            elif kind == COMMITTED:
                story.commits.append((facts[0], {partition: offset for partition, offset in facts[1]}))  # noqa: C416
            elif kind == TROUBLE:
                story.troubles.append(facts[0])
            else:
                story.failures.append(facts[0])
        return story
