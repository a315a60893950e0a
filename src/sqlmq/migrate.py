"""Create and change the tables: the one chain of revisions in ``migrations/``.

Run it with ``sqlmq db upgrade``, or from Python on a connection of your own, or inside a revision of your own::

    def upgrade() -> None:
        sqlmq.migrate.upgrade(op.get_bind())

The caller begins and ends the transaction.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from sqlmq.dialects import dialect_of
from sqlmq.errors import SchemaMissingError, SchemaTooNewError, SchemaTooOldError
from sqlmq.schema import PREFIX, REVISION, VERSION_TABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from alembic.script.base import RevisionStep  # type: ignore[attr-defined]  # private in some versions
    from sqlalchemy import Connection


def upgrade(connection: Connection, *, schema: str | None = None, revision: str = REVISION) -> None:
    """Upgrade the tables to *revision*, inside the caller's transaction.

    Creates a missing *schema*. If several connections upgrade at once, one does it, and the others wait and find it
    done.
    """
    dialect = dialect_of(connection, schema)
    dialect.lock_schema(connection)
    if schema is not None and not sa.inspect(connection).has_schema(schema):
        connection.execute(sa.schema.CreateSchema(schema))
    found = current(connection, schema=schema)
    if found == revision:
        return
    if found is not None and found > REVISION:
        raise SchemaTooNewError(_where(connection, schema), found, REVISION)
    script = _script()
    _run(connection, schema, lambda heads, _: script._upgrade_revs(revision, heads))  # type: ignore[arg-type]  # noqa: SLF001 - see _run


def downgrade(connection: Connection, *, schema: str | None = None, revision: str = "base") -> None:
    """Downgrade the tables to *revision*, inside the caller's transaction. ``base`` drops them with their contents."""
    dialect_of(connection, schema).lock_schema(connection)
    script = _script()
    _run(connection, schema, lambda heads, _: script._downgrade_revs(revision, heads))  # type: ignore[arg-type]  # noqa: SLF001 - see _run


def current(connection: Connection, *, schema: str | None = None) -> str | None:
    """Return the revision of the tables; None if there are none."""
    if not sa.inspect(connection).has_table(VERSION_TABLE, schema=schema):
        return None
    version = sa.table(VERSION_TABLE, sa.column("version_num"), schema=schema)
    found: str | None = connection.execute(sa.select(version.c.version_num)).scalar()
    return found


def check(connection: Connection, *, schema: str | None = None) -> None:
    """Raise SchemaMissingError, SchemaTooOldError or SchemaTooNewError unless the tables fit this version."""
    found = current(connection, schema=schema)
    where = _where(connection, schema)
    if found is None:
        raise SchemaMissingError(where)
    if found < REVISION:
        raise SchemaTooOldError(where, found, REVISION)
    if found > REVISION:
        raise SchemaTooNewError(where, found, REVISION)


def sql(database: str, *, schema: str | None = None, start: str = "base", revision: str = REVISION) -> str:
    """Return the SQL that brings *database* ("postgresql" or "sqlite") from revision *start* to *revision*."""
    from alembic.runtime.migration import MigrationContext

    script = _script()
    text = io.StringIO()
    context = MigrationContext.configure(
        dialect_name=database,
        # No driver halves percent signs again, so they must not be doubled.
        dialect_opts={"paramstyle": "named"},
        opts=_options(schema)
        | {
            "as_sql": True,
            "output_buffer": text,
            "starting_rev": None if start == "base" else start,
            "fn": lambda heads, _: script._upgrade_revs(revision, heads),  # noqa: SLF001 - see _run
        },
    )
    with context.begin_transaction():
        if schema is not None:
            context.impl.static_output(f"{sa.schema.CreateSchema(schema, if_not_exists=True)};")
        _run_revisions(context, schema)
    return text.getvalue()


def include_name(name: str | None, type_: str, parent_names: object) -> bool:
    """Exclude our tables from ``alembic revision --autogenerate``, which would propose to drop them.

    Pass it as ``context.configure(include_name=sqlmq.migrate.include_name)`` in your ``env.py``.
    """
    del parent_names
    return not (type_ == "table" and name is not None and name.startswith(PREFIX))


def _where(connection: Connection, schema: str | None) -> str:
    return f"schema {schema!r}" if schema else f"the database {connection.engine.url.database!r}"


def _run(
    connection: Connection,
    schema: str | None,
    steps: Callable[[tuple[str, ...], MigrationContext], Iterable[RevisionStep]],
) -> None:
    """Run revisions on *connection*.

    alembic's commands reach the revisions through module globals (``alembic.op``). A migration that is running around
    this one would not get them back. So this calls the two private functions that the commands call, and passes the
    operations to the revisions as a parameter.
    """
    from alembic.runtime.migration import MigrationContext

    context = MigrationContext.configure(connection, opts=_options(schema) | {"fn": steps})
    _run_revisions(context, schema)


def _run_revisions(context: MigrationContext, schema: str | None) -> None:
    """Run the revisions of *context*. Each gets alembic's operations, the schema, and a function that runs SQL files."""
    from alembic.operations import Operations

    op = Operations(context)
    # Without *schema*, the functions find their tables where they were created, whatever the caller's search path is.
    quoted = '"{}".'.format(schema.replace('"', '""')) if schema else ""
    search_path = "" if schema else " SET search_path FROM CURRENT"

    def run_sql(file: str) -> None:
        text = (_directory() / "sql" / file).read_text(encoding="utf-8")
        for statement in _STATEMENT.findall(text):
            placed = statement.replace("{schema}", quoted).replace("{search_path}", search_path)
            op.execute(sa.DDL(placed.replace("%", "%%")))  # type: ignore[no-untyped-call]

    # Quoted, because alembic would take a dot in the name for the one between a database and a schema.
    whole = None if schema is None else sa.sql.quoted_name(schema, quote=True)
    context.run_migrations(op=op, schema=whole, run_sql=run_sql)


def _options(schema: str | None) -> dict[str, object]:
    return {"version_table": VERSION_TABLE, "version_table_schema": schema}


def _script() -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(_directory()))


def _directory() -> Path:
    here = Path(__file__).parent
    in_wheel, in_checkout = here / "_migrations", here.parent.parent / "migrations"
    return in_wheel if in_wheel.is_dir() else in_checkout


# A statement with the comment before it. Bodies are quoted by $sqlmq$ and may contain semicolons.
_STATEMENT = re.compile(r"\s*((?:--[^\n]*|\$sqlmq\$.*?\$sqlmq\$|[^;$])++);", re.DOTALL)
