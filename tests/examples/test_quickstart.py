from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import DatabaseUnderTest

QUICKSTART = Path(__file__).parent.parent.parent / "examples" / "quickstart.py"


@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_the_quickstart_runs(database: DatabaseUnderTest) -> None:
    result = subprocess.run(
        [sys.executable, QUICKSTART, database.url], capture_output=True, text=True, check=False, timeout=60
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert "shipping got ['placed', 'paid', 'sent']" in result.stdout
    assert "billing has 0 messages left to read" in result.stdout
