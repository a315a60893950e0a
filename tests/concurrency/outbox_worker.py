"""An application that sells things, each with an event in the same transaction, and that crashes at a chosen step.

Each crash is one of a child of its own, forked from a process that has everything imported and nothing opened.
"""

from __future__ import annotations

import json
import os
import random
import time
from enum import IntEnum, auto
from typing import TYPE_CHECKING, Any

from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.orm import Session

from sqlmq import Message
from sqlmq.operations import produce
from tests.support.processes import in_child

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection, Engine

    from tests.support.processes import Place

APPLICATION = "sqlmq-crash"
TOPICS = ("events", "audit")


class Step(IntEnum):
    """Where a child crashes."""

    BEFORE_PRODUCE = auto()
    AFTER_PRODUCE = auto()
    BEFORE_APPEND = auto()
    AFTER_APPEND = auto()
    BEFORE_COMMIT = auto()
    ON_THE_WAY = auto()
    """COMMIT is sent, its answer not used."""
    AFTER_COMMIT = auto()


class Crash:
    """Ends this process, with the step as its exit code, when a step is reached that is armed."""

    def __init__(self) -> None:
        self.armed: Step | None = None

    def at(self, step: Step) -> None:
        if self.armed is step:
            os._exit(step)


class Application:
    """Everything a child needs, used once and with all connections closed, so that a child has nothing to warm up."""

    def __init__(self, place: Place) -> None:
        self.crash = Crash()
        self.mq = place.open()
        self.producers = [self.mq.producer(topic) for topic in TOPICS]
        self.engines = _engines(place, self.crash)
        _crash_around_append(self.crash)

    def warm_up(self) -> None:
        for engine in self.engines:
            with Session(engine) as session:
                self.transact(session, "never")
                session.rollback()
        with Session(self.engines[0]) as session:
            session.commit()
        self.mq.engine.dispose()

    def sell(self, name: str, step: Step, chosen: random.Random, acknowledged: int) -> None:
        """Sell a few things, and crash with the last."""
        engine = chosen.choice(self.engines)
        last = chosen.randrange(3)
        for number in range(last + 1):
            self.crash.armed = step if number == last else None
            with Session(engine) if chosen.random() < 0.5 else engine.connect() as session:
                self.transact(session, f"{name}.{number}")
                self.crash.at(Step.AFTER_PRODUCE)
                session.commit()
            os.write(acknowledged, f"{name}.{number}\n".encode())
            self.crash.at(Step.AFTER_COMMIT)

    def transact(self, session: Session | Connection, note: str) -> None:
        session.execute(text("INSERT INTO customer_order (note) VALUES (:note)"), {"note": note})
        self.crash.at(Step.BEFORE_PRODUCE)
        for producer in self.producers:
            producer.produce(Message(note.encode()), session=session)


def sell_and_crash(place: Place, results: Path, number: int, count: int, seed: int) -> None:
    """Have *count* children crash, one after the other; write how many did at each step."""
    chosen = random.Random(seed)
    counts: dict[str, int] = {step.name: 0 for step in Step}
    acknowledged = os.open(results.with_suffix(".acknowledged"), os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    application = Application(place)
    application.warm_up()
    began = time.monotonic()
    for child in range(count):
        step = list(Step)[child % len(Step)]
        child_seed = chosen.getrandbits(32)
        name = f"{number}.{child}"
        status = in_child(
            lambda step=step, name=name, seed=child_seed: application.sell(  # type: ignore[misc]
                name, step, random.Random(seed), acknowledged
            )
        )
        assert status == step, (step, status)
        counts[step.name] += 1
    results.write_text(json.dumps({"counts": counts, "seconds": time.monotonic() - began}), encoding="utf-8")
    application.mq.close()


def _engines(place: Place, crash: Crash) -> list[Engine]:
    """The application's, one for each isolation level there is."""
    if not place.url.startswith("postgresql"):
        return [_crashing(create_engine(place.url, poolclass=NullPool, connect_args={"timeout": 60}), crash)]
    levels: list[Any] = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
    arguments = {"application_name": APPLICATION}
    return [
        _crashing(create_engine(place.url, poolclass=NullPool, isolation_level=level, connect_args=arguments), crash)
        for level in levels
    ]


def _crashing(engine: Engine, crash: Crash) -> Engine:
    commit = engine.dialect.do_commit

    def do_commit(connection: Any) -> None:
        crash.at(Step.BEFORE_COMMIT)
        if crash.armed is Step.ON_THE_WAY and engine.dialect.name == "postgresql":
            server = connection.driver_connection.pgconn
            server.send_query(b"COMMIT")
            while server.flush():
                pass
            crash.at(Step.ON_THE_WAY)
        commit(connection)
        crash.at(Step.ON_THE_WAY)

    dialect: Any = engine.dialect
    dialect.do_commit = do_commit
    return engine


def _crash_around_append(crash: Crash) -> None:
    flow: Any = produce
    publish = flow.publish

    def publish_or_crash(*arguments: Any) -> Any:
        crash.at(Step.BEFORE_APPEND)
        results = publish(*arguments)
        crash.at(Step.AFTER_APPEND)
        return results

    flow.publish = publish_or_crash
