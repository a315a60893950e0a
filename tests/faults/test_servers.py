"""Postgres servers that are hurt under load: nobody has to be told, and everybody goes on in time.

One server for all tests here, which each leave it as they found it, running.
"""

from __future__ import annotations

import os
import random
import signal
import time
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from sqlmq import MQ, Message, OutcomeUnknownError
from sqlmq.errors import ReadOnlyDatabaseError
from sqlmq.migrate import upgrade
from tests.support.postgres_pair import PostgresPair
from tests.support.postgres_server import PostgresServer, installations
from tests.support.traffic import PATIENCE_SECONDS, Traffic
from tests.support.waiting import slack_seconds, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import URL

TERMINATIONS = int(os.environ.get("SQLMQ_TERMINATIONS", "30"))
RESTARTED_SECONDS, PROMOTED_SECONDS, HEARING_SECONDS, CLOSE_SECONDS = 3.0, 5.0, 5.0, 5.0

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="finds the server's processes in /proc"),  # noqa: PTH112
    pytest.mark.xdist_group("servers"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    server = PostgresServer(next(installations()))
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def url(server: PostgresServer, request: pytest.FixtureRequest) -> URL:
    """A database of the test's own on the server that is hurt, with the tables in it."""
    name = f"test_{abs(hash(request.node.name))}"
    execute(server.url, f"CREATE DATABASE {name}")
    url = server.url.set(database=name)
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        upgrade(connection)
    return url


def execute(url: URL, statement: str) -> list[int]:
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        result = connection.execute(text(statement))
        return list(result.scalars()) if result.returns_rows else []


OURS = """SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
    AND backend_type = 'client backend'"""


@pytest.fixture
def traffic(url: URL) -> Iterator[Traffic]:
    traffic = Traffic(url.render_as_string(hide_password=False))
    traffic.wait_for_progress(time.monotonic())
    yield traffic
    traffic.stop()


def assert_that_it_goes_on(traffic: Traffic, since: float, most_seconds: float) -> None:
    """Everybody makes progress in time, wake-ups work again, and in the end nothing is missing or there twice."""
    traffic.wait_for_progress(since)
    took = traffic.seconds_until_progress(since)
    print({actor: round(seconds, 2) for actor, seconds in took.items()})
    until(
        lambda: traffic._mq._background.listener.is_receiving,
        "a listener that hears",
        seconds=HEARING_SECONDS + slack_seconds(),
    )
    traffic.end()
    traffic.check()
    assert max(took.values()) <= most_seconds + slack_seconds()


@pytest.mark.timeout(120 + TERMINATIONS * 5)
def test_everybody_goes_on_when_sessions_are_terminated(url: URL, traffic: Traffic) -> None:
    chosen = random.Random(17)

    def terminate_one() -> bool:
        pids = execute(url, OURS)
        return bool(pids) and execute(url, f"SELECT pg_terminate_backend({chosen.choice(pids)})") == [True]

    until(lambda: traffic._mq._background.listener.is_receiving, "a listener that hears")
    (listener,) = execute(url, f"{OURS} AND query LIKE 'LISTEN%'")
    execute(url, f"SELECT pg_terminate_backend({listener})")
    for _ in range(TERMINATIONS):
        until(terminate_one, "a session to terminate")
    moment = time.monotonic()
    execute(url, OURS.replace("SELECT pid", "SELECT pg_terminate_backend(pid)"))

    assert_that_it_goes_on(traffic, moment, RESTARTED_SECONDS)


def kill_a_backend(server: PostgresServer, url: URL) -> None:
    os.kill(execute(url, OURS)[0], signal.SIGKILL)
    until(lambda: answers(server.url), "the server to be back")


def kill_the_postmaster(server: PostgresServer, _url: URL) -> None:
    server.kill_postmaster()
    server.start()


def stop_at_once(server: PostgresServer, _url: URL) -> None:
    server.kill()
    server.start()


def stop_fast(server: PostgresServer, _url: URL) -> None:
    server.stop()
    server.start()


def answers(url: URL) -> bool:
    try:
        return execute(url, "SELECT 1") == [1]
    except Exception:  # noqa: BLE001 - whatever it is, it does not answer
        return False


@pytest.mark.parametrize("hurt", [kill_a_backend, kill_the_postmaster, stop_at_once, stop_fast])
def test_everybody_goes_on_when_the_server_is_back(
    server: PostgresServer, url: URL, traffic: Traffic, hurt: Callable[[PostgresServer, URL], None]
) -> None:
    hurt(server, url)

    assert_that_it_goes_on(traffic, time.monotonic(), RESTARTED_SECONDS)


def test_everybody_goes_on_when_the_server_was_paused(
    server: PostgresServer, traffic: Traffic, resume_later: Callable[[PostgresServer, float], None]
) -> None:
    resume_later(server, 5.0)

    assert_that_it_goes_on(traffic, time.monotonic(), RESTARTED_SECONDS)


@pytest.fixture
def resume_later() -> Callable[[PostgresServer, float], None]:
    def pause(server: PostgresServer, seconds: float) -> None:
        began = time.monotonic()
        server.pause()
        try:
            until(lambda: time.monotonic() - began >= seconds, "the end of the pause")
        finally:
            server.resume()

    return pause


def test_an_mq_is_closed_in_time_while_the_server_hangs(server: PostgresServer, url: URL) -> None:
    mq = MQ(url)
    consumers = [mq.consumer("orders", group) for group in ("a", "b")]
    mq.producer("orders").produce(Message(b"1"))
    for consumer in consumers:
        consumer.poll(timeout=10)
    server.pause()
    began = time.monotonic()
    try:
        with pytest.raises(ExceptionGroup):
            mq.close()
        took = time.monotonic() - began
    finally:
        server.resume()

    assert took <= CLOSE_SECONDS + slack_seconds()


# A server that is a standby.


@pytest.fixture
def pair() -> Iterator[PostgresPair]:
    pair = PostgresPair()
    yield pair
    pair.remove()


def test_a_primary_that_comes_back_as_a_standby_at_its_address_is_left_for_the_new_one(pair: PostgresPair) -> None:
    with MQ(pair.url) as mq:
        producer = mq.producer("orders")
        producer.produce(Message(b"before"))
        pair.primary.kill()
        (pair.primary.directory / "data" / "standby.signal").touch()
        pair.primary.start()
        # The connections of the pool lead to the old one again, before there is a new one.
        with pytest.raises(Exception, match=r"recovery|read-only|session|standby|connection was lost during COMMIT"):
            producer.produce(Message(b"to nobody"))
        promoted = pair.promote()

        place = producer.produce(Message(b"after"))

        assert time.monotonic() - promoted <= PROMOTED_SECONDS + slack_seconds()
    with MQ(pair.standby.url) as mq:
        assert mq.admin.describe_topic("orders").partitions[place.partition].end_offset == place.offset + 1


def test_a_standby_alone_is_refused_for_what_it_is(pair: PostgresPair) -> None:
    with MQ(pair.primary.url) as mq:
        mq.create_topic("orders")
    with MQ(pair.standby.url) as mq:
        until(lambda: mq.admin.topics() == ["orders"], "the topic to be there")
        producer = mq.producer("orders")
        began = time.monotonic()

        with pytest.raises(ReadOnlyDatabaseError, match="Connect to the primary server"):
            producer.produce(Message(b"1"))
        with pytest.raises(ReadOnlyDatabaseError):
            mq.consumer("orders", "billing").poll(timeout=PATIENCE_SECONDS)

        assert time.monotonic() - began <= slack_seconds()


def have_commits_wait_for(server: PostgresServer, standbys: str, *, waits: bool) -> None:
    """Set the standbys whose word a COMMIT waits for, and return when a COMMIT of anybody *waits*, or none does."""
    execute(server.url, f"ALTER SYSTEM SET synchronous_standby_names = '{standbys}'")
    execute(server.url, "SELECT pg_reload_conf()")
    until(lambda: commit_waits(server) == waits, f"COMMITs that wait: {waits}")


def commit_waits(server: PostgresServer) -> bool:
    """Whether a COMMIT waits for a standby: begin one, and look at it until it is done, or does."""
    with psycopg.connect(server.url.set(drivername="postgresql").render_as_string(hide_password=False)) as connection:
        pid = connection.info.backend_pid
        connection.pgconn.send_query(b"SET synchronous_commit = on; SELECT pg_logical_emit_message(true, '', '')")
        state = f"""SELECT (wait_event IS NOT DISTINCT FROM 'SyncRep')::int FROM pg_stat_activity
            WHERE pid = {pid} AND query LIKE 'SET%' AND (state = 'idle' OR wait_event = 'SyncRep')"""
        seen: list[int] = []

        def look() -> bool:
            seen.extend(execute(server.url, state))
            return bool(seen)

        until(look, "a COMMIT that is done or waits")
        execute(server.url, f"SELECT pg_cancel_backend({pid})")
        connection.pgconn.finish()
    return bool(seen[0])


def test_a_commit_that_no_standby_has_confirmed_is_not_taken_for_done(server: PostgresServer, url: URL) -> None:
    durable = url.update_query_dict({"options": "-c synchronous_commit=on"})
    with MQ(durable, response_timeout_seconds=1.0, notify=False) as mq:
        producer, consumer = mq.producer("orders"), mq.consumer("orders", "billing")
        producer.produce(Message(b"1"))

        try:
            have_commits_wait_for(server, "nobody", waits=True)
            with pytest.raises(OutcomeUnknownError):
                producer.produce(Message(b"2"))
            with pytest.raises(OutcomeUnknownError):
                producer.produce_many([Message(b"3")] * 6_000)  # by COPY, in a transaction
            with (
                pytest.raises(OutcomeUnknownError),
                consumer.transaction(timeout=PATIENCE_SECONDS) as tx,
            ):
                assert tx.messages
        finally:
            have_commits_wait_for(server, "", waits=False)

        assert producer.produce(Message(b"4")).offset is not None
