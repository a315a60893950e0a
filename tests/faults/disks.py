"""Small disks, to be filled."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.postgres_server import unprivileged_account

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def small_disk_at(directory: Path, size: str) -> Iterator[Path]:
    """A file system of that *size*, as ``3m``, in *directory*; where none may be mounted, the test is skipped and says so."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"No file system may be mounted here: {mounted.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def give_to_server(directory: Path) -> None:
    """Let a server of the tests write to *directory*, and to all that is in it."""
    account = unprivileged_account()
    if account:
        for path in (directory, *directory.rglob("*")):
            os.chown(path, account["user"], account["group"])
        for parent in list(directory.parents)[:3]:
            parent.chmod(0o755)
