"""A cable is pulled, and plugged in again: true silence, without any error, between a process and the database.

The process is in a network namespace of its own, with a virtual cable to ours. Linux, as root.
"""

from __future__ import annotations

import secrets
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import make_url, text

from sqlmq import Message
from tests.faults import holder
from tests.faults.proxy import Proxy
from tests.support.processes import GROUP, TOPIC, QueueUnderTest
from tests.support.waiting import receive, slack_seconds, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest
    from tests.support.processes import Processes

LEASE_SECONDS, POLL_SECONDS, MARGIN_SECONDS = 2.0, 0.2, 1.0

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.parametrize("database", ["postgres"], indirect=True),
]


class Cable:
    """A cable to another network; ``host`` is where we are to be found at our end of it."""

    def __init__(self) -> None:
        self._name = f"sq{secrets.token_hex(3)}"
        subnet = f"10.{secrets.randbelow(256)}.{secrets.randbelow(256)}"
        self.host = f"{subnet}.1"
        self.network = Path("/run/netns") / self._name
        ip("netns", "add", self._name)
        try:
            ip("link", "add", f"{self._name}a", "type", "veth", "peer", "name", f"{self._name}b", "netns", self._name)
            ip("address", "add", f"{self.host}/24", "dev", f"{self._name}a")
            ip("-n", self._name, "address", "add", f"{subnet}.2/24", "dev", f"{self._name}b")
            ip("-n", self._name, "link", "set", f"{self._name}b", "up")
            self.plug_in()
        except BaseException:
            self.remove()
            raise

    def pull(self) -> None:
        ip("link", "set", f"{self._name}a", "down")

    def plug_in(self) -> None:
        ip("link", "set", f"{self._name}a", "up")

    def remove(self) -> None:
        # The cable goes with its other end.
        ip("netns", "delete", self._name)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def cable() -> Iterator[Cable]:
    try:
        cable = Cable()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"No network namespace can be made here: {getattr(error, 'stderr', None) or error}")
    yield cable
    cable.remove()


@pytest.fixture
def queue(cable: Cable, database: DatabaseUnderTest) -> Iterator[QueueUnderTest]:
    """The database, as it is found from the other end of the cable."""
    with Proxy(make_url(database.url), cable.host) as proxy:
        yield QueueUnderTest(proxy.url.render_as_string(hide_password=False), database.schema, LEASE_SECONDS)


def test_whoever_is_cut_off_is_replaced_and_what_it_had_in_hand_is_refused(
    mq: MQ, cable: Cable, processes: Processes, database: DatabaseUnderTest, tmp_path: Path
) -> None:
    mq.create_topic(TOPIC, 1)
    mq.producer(TOPIC).produce(Message(b"1"))
    go_on = tmp_path / "go on"
    name = processes.start("holder", holder.hold, go_on, time.monotonic() + 100, cable.network)
    until(lambda: processes.has_begun(name), "it to have the message")

    with (
        QueueUnderTest(database.url, database.schema, LEASE_SECONDS).open() as near,
        near.consumer(TOPIC, GROUP) as other,
    ):
        cable.pull()
        pulled_at = time.monotonic()
        assert [message.offset for message in receive(other, 1)] == [0]
        took = time.monotonic() - pulled_at
        until(lambda: time.monotonic() - pulled_at >= 2 * LEASE_SECONDS, "two leases")
        cable.plug_in()
        go_on.touch()
        processes.running[name].join(60)
        other.commit()

    assert took <= LEASE_SECONDS + POLL_SECONDS + MARGIN_SECONDS + slack_seconds()
    assert processes.stories("holder")[0].troubles == ["FencedError"]


def test_a_transaction_that_is_cut_off_is_undone_and_its_messages_go_to_another(
    mq: MQ, engine: Engine, cable: Cable, processes: Processes, tmp_path: Path
) -> None:
    mq.create_topic(TOPIC, 1)
    mq.producer(TOPIC).produce(Message(b"1"))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE effect (what text)"))
    go_on = tmp_path / "go on"
    name = processes.start("holder", holder.hold_in_transaction, go_on, time.monotonic() + 100, cable.network)
    until(lambda: processes.has_begun(name), "it to have the message")
    cable.pull()
    pulled_at = time.monotonic()

    # The server ends a transaction that has been idle for max_poll_seconds, which are as many as those of a lease here.
    with mq.consumer(TOPIC, GROUP) as other, other.transaction(timeout=60) as tx:
        took = time.monotonic() - pulled_at
        assert [message.offset for message in tx.messages] == [0]
        tx.connection.execute(text("INSERT INTO effect (what) VALUES ('in time')"))
    cable.plug_in()
    go_on.touch()
    processes.running[name].join(60)

    assert took <= LEASE_SECONDS + POLL_SECONDS + MARGIN_SECONDS + slack_seconds()
    assert len(processes.stories("holder")[0].troubles) == 1
    with engine.connect() as connection:
        assert connection.execute(text("SELECT what FROM effect")).scalars().all() == ["in time"]
