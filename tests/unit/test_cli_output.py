"""Tables of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmq.cli.output import show

if TYPE_CHECKING:
    import pytest


def test_numbers_that_name_something_are_printed_as_a_command_takes_them(capsys: pytest.CaptureFixture[str]) -> None:
    facts = {
        "id": 36_527_191,
        "partition": 1024,
        "offset": 2_000_000,
        "messages": 2_000_000,
        "partitions": [1024, 2048],
    }

    show([facts], list(facts), as_json=False)

    assert capsys.readouterr().out.splitlines()[1].split() == [
        "36527191",
        "1024",
        "2000000",
        "2,000,000",
        "1024,",
        "2048",
    ]
