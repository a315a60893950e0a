"""One cache of compiled statements for all engines of a test process: a plugin of pytest.

SQLAlchemy compiles a statement once for each engine, in half a millisecond, and nearly every test has engines of its own. A
statement does not depend on the engine, but on the dialect and what the database can do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.engine import Dialect

MOST_STATEMENTS = 5_000
_shared: dict[object, Any] = {}


class _Statements(dict[Any, Any]):
    """The compiled statements of one dialect object, whose keys begin with it; kept for all that are like it."""

    def __init__(self, kind: object) -> None:
        super().__init__()
        self._kind = kind

    def get(self, key: Any, default: Any = None) -> Any:
        return _shared.get((self._kind, key[1:]), default)

    def __setitem__(self, key: Any, compiled: Any) -> None:
        if len(_shared) >= MOST_STATEMENTS:
            _shared.clear()
        _shared[self._kind, key[1:]] = compiled


def pytest_configure() -> None:
    """Make all engines of this process share their compiled statements."""
    event.listen(Engine, "engine_connect", _share)


def _share(connection: Connection) -> None:
    connection.execution_options(compiled_cache=_Statements(_kind_of(connection.dialect)))


def _kind_of(dialect: Dialect) -> tuple[object, ...]:
    """What a compiled statement depends on, besides the statement."""
    options = ("paramstyle", "server_version_info", "use_insertmanyvalues", "_json_serializer", "_json_deserializer")
    return (type(dialect), *(getattr(dialect, name, None) for name in options))
