"""Closing once, unless that is interrupted."""

from __future__ import annotations

import pytest

from sqlmq.database.close_once import CloseOnce


def test_a_close_that_was_interrupted_is_done_by_the_next_call() -> None:
    closing = CloseOnce()
    calls: list[int] = []

    def close() -> None:
        calls.append(len(calls))
        if len(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        closing.run(close)
    closing.run(close)
    closing.run(close)

    assert calls == [0, 1]


def test_a_close_that_failed_has_the_same_result_for_everybody() -> None:
    closing = CloseOnce()
    calls: list[int] = []

    def close() -> None:
        calls.append(len(calls))
        raise ArithmeticError

    for _ in range(2):
        with pytest.raises(ArithmeticError):
            closing.run(close)

    assert calls == [0]
