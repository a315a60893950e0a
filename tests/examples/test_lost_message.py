from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.examples.programs import ROOT, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import DatabaseUnderTest

SCRIPT = ROOT / "examples" / "lost_message.py"

pytestmark = pytest.mark.parametrize("database", ["postgres"], indirect=True)


def test_an_outbox_by_hand_loses_a_message_where_sqlmq_does_not(database: DatabaseUnderTest) -> None:
    result = run(SCRIPT, database.url)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "by hand: ['B']; with sqlmq: ['B', 'A'] and ['A', 'B']" in result.stdout
    assert result.stdout.endswith("The outbox by hand has lost A; sqlmq has lost nothing.\n")


def test_the_script_fails_when_there_is_nothing_to_show(database: DatabaseUnderTest, tmp_path: Path) -> None:
    # The reader looks for the first time when both have committed.
    source = SCRIPT.read_text(encoding="utf-8")
    patient = source.replace(
        '        seen = reader.poll()\n        commit(a, "A")\n', '        seen = []\n        commit(a, "A")\n'
    )
    assert patient != source
    broken = tmp_path / "patient.py"
    broken.write_text(patient, encoding="utf-8")

    result = run(broken, database.url)

    assert result.returncode == 1, result.stdout + result.stderr
    assert "FAILED" in result.stdout
