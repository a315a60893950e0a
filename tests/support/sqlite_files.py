"""Where the SQLite files of tests are: in memory, if the machine has a file system there.

What the tests do not depend on is off for speed, as `fsync` is on their Postgres server: a commit waits 2 ms for a disk, and no
test looks at what a power failure leaves behind.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMORY = Path("/dev/shm")  # noqa: S108 - each directory in it is made by TemporaryDirectory
ROOM_BYTES = 2 * 1024**3
"""The least room there: in a container it often has 64 MB."""


@contextmanager
def directory_for_sqlite(otherwise: Path) -> Iterator[Path]:
    """Provide an empty directory in memory that is removed in the end; *otherwise* where there is no room."""
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < ROOM_BYTES:
        yield otherwise
        return
    # A process that a test has killed may hold a file for a moment longer.
    with TemporaryDirectory(prefix="sqlmq-test-", dir=MEMORY, ignore_cleanup_errors=True) as directory:
        yield Path(directory)
