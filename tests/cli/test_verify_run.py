from __future__ import annotations

import click
import pytest

from sqlmq.cli.commands.verify_run import run
from sqlmq.verify.plan import FAULTS


def options(*arguments: str) -> dict[str, object]:
    return run.make_context("run", list(arguments)).params


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["--payload", "64..2000"], ("payload", (64, 2000))),
        (["--batch", "5"], ("batch", (5, 5))),
        (["--faults", "pause,kill"], ("faults", ("kill", "pause"))),
        (["--faults", "none"], ("faults", ())),
        ([], ("payload", (64, 2000))),
        ([], ("batch", (1, 20))),
        ([], ("faults", FAULTS)),
    ],
)
def test_ranges_and_faults_are_read_from_the_command_line(typed: list[str], expected: tuple[str, object]) -> None:
    name, value = expected

    assert options(*typed)[name] == value


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        (["--payload", "many"], "'many' is not a range"),
        (["--payload", "5..2"], "from 1 up"),
        (["--batch", "0..2"], "from 1 up"),
        (["--faults", "kill,flood"], "Unknown fault 'flood'"),
    ],
)
def test_a_range_or_fault_that_makes_no_sense_is_refused_with_its_option(typed: list[str], complaint: str) -> None:
    with pytest.raises(click.BadParameter) as refused:
        options(*typed)

    assert complaint in refused.value.message
    assert typed[0] in refused.value.format_message()
