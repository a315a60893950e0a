"""The status of a SQLite file and of the file system it is on."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from sqlmq.dialects.sqlite import file
from sqlmq.reports.doctor import DatabaseStatus

if TYPE_CHECKING:
    from sqlalchemy import Connection

_MOUNTS = Path("/proc/mounts")
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs")


def database_status(conn: Connection) -> DatabaseStatus:
    """Return the status of the connection's file, its settings and its write-ahead file."""
    opened = file.of(conn)
    has_moved = opened is not None and opened.has_moved()
    path = None if opened is None or has_moved else Path(opened.opened)
    journal_mode = str(conn.exec_driver_sql("PRAGMA journal_mode").scalar_one())
    synchronous = conn.exec_driver_sql("PRAGMA synchronous").scalar_one()
    wal = None if path is None else path.with_name(f"{path.name}-wal")
    return DatabaseStatus(
        read_only=None if path is None or os.access(path, os.W_OK) else "this process may not write the file",
        off=("synchronous is not FULL",) if synchronous < 2 and opened is not None else (),
        has_moved=has_moved,
        sqlite_version=sqlite3.sqlite_version_info,
        journal_mode=journal_mode,
        file_system=None if path is None else _network_file_system(path.resolve()),
        wal_bytes=wal.stat().st_size if wal is not None and wal.exists() else 0,
    )


def _mounts() -> str:
    """Return the mounted file systems, as Linux lists them; an empty text on other systems."""
    try:
        return _MOUNTS.read_text(encoding="utf-8")
    except OSError:
        return ""


def _network_file_system(path: Path) -> str | None:
    """Return the kind of the network file system that *path* is on; None for a local or unknown one."""
    found = (Path("/"), "")
    for line in _mounts().splitlines():
        _, place, kind, *_ = line.split()
        mounted = Path(place.replace(r"\040", " "))
        if path.is_relative_to(mounted) and len(mounted.parts) >= len(found[0].parts):
            found = mounted, kind
    return found[1] if found[1] in _NETWORK else None
