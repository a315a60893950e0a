"""What several kinds of faults happen to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.processes import Processes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.processes import Place


@pytest.fixture
def processes(place: Place, tmp_path: Path) -> Iterator[Processes]:
    """Processes of the test's own at its `place`; none outlives it."""
    processes = Processes(place, tmp_path)
    yield processes
    processes.close()
