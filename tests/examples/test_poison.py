from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.examples.programs import ROOT, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import DatabaseUnderTest

SCRIPT = ROOT / "examples" / "poison.py"


def arguments(database: DatabaseUnderTest) -> list[str]:
    return [database.url] if database.is_postgres else []


@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_bad_messages_hold_nobody_up_but_their_own_key_and_are_handled_after_the_fix(
    database: DatabaseUnderTest,
) -> None:
    result = run(SCRIPT, *arguments(database))

    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("kills the process") == 3
    assert result.stdout.count("fails: the warehouse does not answer") == 2
    left = result.stdout.partition("\n3. ")[2].partition("\n4. ")[0]
    assert re.findall(r"^    (\d)  (\w+)  dead    3 attempts (\w+)", left, re.MULTILINE) == [
        ("1", "bob", "ValueError"),
        ("3", "dan", "ProcessEnded"),
    ]
    assert result.stdout.endswith("All eight orders were handled once, and no customer had to wait for another's.\n")
    assert result.stderr == ""


@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_the_script_fails_when_the_bug_is_not_fixed(database: DatabaseUnderTest, tmp_path: Path) -> None:
    source = SCRIPT.read_text(encoding="utf-8")
    careless = source.replace(
        "handle_all(mq, url, journal, is_fixed=True)", "handle_all(mq, url, journal, is_fixed=False)"
    )
    assert careless != source
    broken = tmp_path / "careless.py"
    broken.write_text(careless, encoding="utf-8")

    result = run(broken, *arguments(database))

    assert result.returncode == 1, result.stdout + result.stderr
    assert result.stdout.endswith("FAILED: see above\n")
