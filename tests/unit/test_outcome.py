"""What an error says about an attempt, and of which message it is certain that it was attempted."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from sqlmq.aio.executor import AsyncExecutor
from sqlmq.consumer.worker.dispatcher import killed_by_message
from sqlmq.consumer.worker.executor import Aborted, Failed, NotCommitted, Outcome, outcome_of
from sqlmq.errors import DatabaseUnavailableError, FencedError, OutcomeUnknownError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sqlmq import ReceivedMessage


@dataclass
class Attempted:
    """An attempt at some moment, as ``Execution``."""

    has_begun: bool = False
    is_settling: bool = False

    def next_batch(self) -> list[ReceivedMessage]:
        return []

    def settle(self, conn: Connection) -> None: ...

    def committed(self) -> None: ...


IN_HANDLER = Attempted(has_begun=True)
IN_COMMIT = Attempted(has_begun=True, is_settling=True)


@pytest.mark.parametrize(
    ("error", "moment", "expected"),
    [
        pytest.param(ValueError(), IN_HANDLER, Failed, id="the handler's own error"),
        pytest.param(DatabaseUnavailableError(), IN_HANDLER, Failed, id="a database that the handler uses"),
        pytest.param(ValueError(), IN_COMMIT, Failed, id="effects that can't be committed"),
        pytest.param(FencedError("orders", "billing", (0,)), IN_COMMIT, NotCommitted, id="a lost partition"),
        pytest.param(DatabaseUnavailableError(), IN_COMMIT, NotCommitted, id="a lost connection"),
        pytest.param(OutcomeUnknownError("lost"), IN_COMMIT, NotCommitted, id="a COMMIT without an answer"),
        pytest.param(ValueError(), Attempted(), Aborted, id="before the handler"),
        pytest.param(SystemExit(), IN_HANDLER, Aborted, id="the end of the program"),
        pytest.param(SystemExit(), IN_COMMIT, Aborted, id="the end of the program in the commit"),
    ],
)
def test_an_error_is_the_handlers_unless_something_else_ended_the_attempt(
    error: BaseException, moment: Attempted, expected: type[Outcome]
) -> None:
    assert isinstance(outcome_of(error, moment), expected)


def test_an_attempt_is_aborted_when_its_event_loop_is_closed() -> None:
    async def handle(_: object) -> None: ...

    async def make() -> AsyncExecutor:
        return AsyncExecutor(handle, in_batches=False)

    executor = asyncio.run(make())

    assert isinstance(executor.execute(Attempted()), Aborted)


@pytest.mark.parametrize(("in_flight_to", "expected"), [(0, False), (5, False), (6, True), (7, False)])
def test_only_the_single_message_in_flight_is_sure_to_have_been_attempted(in_flight_to: int, expected: bool) -> None:
    assert killed_by_message(5, in_flight_to) is expected
