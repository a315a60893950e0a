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
from sqlmq.errors import SchemaError, SchemaMissingError, SchemaTooNewError, SchemaTooOldError
from sqlmq.model.validation import check_postgresql_name
from sqlmq.schema import (
    DETAILED_VIEWS,
    PREFIX,
    REVISION,
    VERSION_TABLE,
    VIEWS_WITHOUT_CONTENT,
    own_names,
    quoted,
    tables,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from alembic.script.base import RevisionStep  # type: ignore[attr-defined]  # private in some versions
    from sqlalchemy import Connection


def upgrade(connection: Connection, *, schema: str | None = None, revision: str = REVISION) -> None:
    """Upgrade the tables to *revision*, inside the caller's transaction.

    Creates a missing *schema*. If several connections upgrade at once, one does it, and the others wait and find it
    done: on Postgres, a transaction that begins with it becomes READ COMMITTED. Raises IsolationError if the transaction has
    an older snapshot than what another migration has changed. If the tables are there but ``sqlmq_version`` was emptied, their revision is written again.
    """
    dialect = dialect_of(connection, schema)
    dialect.check_session(connection)
    with own_names(connection):
        dialect.lock_schema(connection, VERSION_TABLE)
        if schema is not None and not sa.inspect(connection).has_schema(schema):
            connection.execute(sa.schema.CreateSchema(schema))
        found = current(connection, schema=schema)
        if found is None and _is_there(connection, schema):
            found = _write_revision(connection, schema)
        if found == revision:
            return
        if found is not None and found > REVISION:
            raise SchemaTooNewError(_where(connection, schema), found, REVISION)
        script = _script()
        _run(connection, schema, lambda heads, _: script._upgrade_revs(revision, heads))  # type: ignore[arg-type]  # noqa: SLF001 - see _run


def downgrade(connection: Connection, *, schema: str | None = None, revision: str = "base") -> None:
    """Downgrade the tables to *revision*, inside the caller's transaction. ``base`` drops them with their contents."""
    with own_names(connection):
        dialect_of(connection, schema).lock_schema(connection, VERSION_TABLE)
        script = _script()
        _run(connection, schema, lambda heads, _: script._downgrade_revs(revision, heads))  # type: ignore[arg-type]  # noqa: SLF001 - see _run


def current(connection: Connection, *, schema: str | None = None) -> str | None:
    """Return the revision of the tables; None if there are none."""
    dialect_of(connection, schema).check_session(connection)
    if not sa.inspect(connection).has_table(VERSION_TABLE, schema=schema):
        return None
    version = sa.table(VERSION_TABLE, sa.column("version_num"), schema=schema)
    with own_names(connection):
        found: str | None = connection.execute(sa.select(version.c.version_num)).scalar()
    return found


def check(connection: Connection, *, schema: str | None = None) -> None:
    """Raise SchemaMissingError, SchemaTooOldError or SchemaTooNewError unless the tables fit this version."""
    found = current(connection, schema=schema)
    where = _where(connection, schema)
    if found is None:
        is_emptied = _is_there(connection, schema)
        elsewhere = [] if is_emptied or schema is not None else _schemas_with_tables(connection)
        raise SchemaMissingError(where, is_emptied=is_emptied, elsewhere=elsewhere)
    if found < REVISION:
        raise SchemaTooOldError(where, found, REVISION)
    if found > REVISION:
        raise SchemaTooNewError(where, found, REVISION)


def sql(database: str, *, schema: str | None = None, start: str = "base", revision: str = REVISION) -> str:
    """Return the SQL that brings *database* ("postgresql" or "sqlite") from revision *start* to *revision*."""
    from alembic.runtime.migration import MigrationContext

    if schema is not None:
        check_postgresql_name(schema)
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
            context.impl.static_output(_create_schema(schema))
        _run_revisions(context, schema)
    return text.getvalue()


def include_name(name: str | None, type_: str, parent_names: object) -> bool:
    """Exclude our tables from ``alembic revision --autogenerate``, which would propose to drop them.

    Pass it as ``context.configure(include_name=sqlmq.migrate.include_name)`` in your ``env.py``.
    """
    del parent_names
    return not (type_ == "table" and name is not None and name.startswith(PREFIX))


def _is_there(connection: Connection, schema: str | None) -> bool:
    """Whether there are tables of ours, whatever ``sqlmq_version`` says."""
    return sa.inspect(connection).has_table(tables(schema).topic.name, schema=schema)


def _schemas_with_tables(connection: Connection) -> list[str]:
    """Return the schemas of the database that have tables of ours."""
    inspector = sa.inspect(connection)
    return [name for name in inspector.get_schema_names() if inspector.has_table(VERSION_TABLE, schema=name)]


def _write_revision(connection: Connection, schema: str | None) -> str:
    """Write the revision of the tables that are there into ``sqlmq_version``, which was emptied, and return it.

    Raises SchemaError if they are not those of this version, made by its migrations.
    """
    from alembic.runtime.migration import MigrationContext

    inspector = sa.inspect(connection)
    differing = [
        table.name
        for table in tables(schema).metadata.tables.values()
        if not inspector.has_table(table.name, schema=schema)
        or {column["name"] for column in inspector.get_columns(table.name, schema=schema)} != {*table.columns.keys()}
    ]
    differing += [view for view in _VIEWS if not inspector.has_table(view, schema=schema)]
    if differing:
        where = _where(connection, schema)
        message = (
            f"{VERSION_TABLE} in {where} names no revision, and the tables there are not those of revision {REVISION} "
            f"({', '.join(differing)}). Write the right revision into it, or drop all tables of sqlmq."
        )
        raise SchemaError(message)
    MigrationContext.configure(connection, opts=_options(schema)).stamp(_script(), REVISION)
    return REVISION


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

    def run_sql(file: str) -> None:
        for statement in _statements(file, schema):
            op.execute(statement)

    # Quoted, because alembic would take a dot in the name for the one between a database and a schema.
    whole = None if schema is None else sa.sql.quoted_name(schema, quote=True)
    context.run_migrations(op=op, schema=whole, run_sql=run_sql)


def _statements(file: str, schema: str | None) -> Iterator[sa.DDL]:
    """Yield the statements of a file in ``migrations/sql`` for the tables in *schema*."""
    prefix = f"{quoted(schema)}." if schema else ""
    found = {"{home}": _literal(f"{prefix}sqlmq_topic"), "{schema}": prefix, "$sqlmq$": _dollar_quotes(prefix)}
    text = _FOLLOWING.sub(_following, (_directory() / "sql" / file).read_text(encoding="utf-8"))
    for statement in _STATEMENT.findall(text):
        # All at once, because a name may look like a place.
        placed = _PLACES.sub(lambda place: found[place[0]], statement)
        yield sa.DDL(placed.replace("%", "%%"))  # type: ignore[no-untyped-call]


def _create_schema(schema: str) -> str:
    """Return the SQL that creates *schema* where it is missing.

    Not IF NOT EXISTS: for that, Postgres demands the right to create schemas, also where there is nothing to create.
    """
    quotes = _dollar_quotes(schema)
    return (
        f"DO {quotes}\nBEGIN\n    IF to_regnamespace({_literal(quoted(schema))}) IS NULL THEN\n"
        f"        CREATE SCHEMA {quoted(schema)};\n    END IF;\nEND\n{quotes};"
    )


def _literal(text: str) -> str:
    # As E'', because a backslash in any other literal depends on standard_conforming_strings.
    return "E'{}'".format(text.replace("\\", "\\\\").replace("'", "''"))


def _dollar_quotes(name: str) -> str:
    """Return quotes for the body of a function in which *name* stands."""
    quotes = "$sqlmq$"
    while quotes in name:
        quotes = f"{quotes[:-1]}_$"
    return quotes


@sa.event.listens_for(sa.Table, "before_drop")
def _drop_what_depends(table: sa.Table, connection: Connection | None, **_: object) -> None:
    """Drop our views and functions before the first of our tables, however SQLAlchemy is asked to drop that.

    Fixtures of test suites drop what they have reflected, which is tables alone. Postgres refuses that while views depend
    on them, and on SQLite the views would be left, so that the next migration could not create them.
    """
    is_ours = table.name in {own.name for own in tables(None).metadata.tables.values()}
    if connection is None or not is_ours or not sa.inspect(connection).has_table(_VIEWS[0], schema=table.schema):
        return
    files = ["drop_views.sql"]
    if dialect_of(connection, table.schema).has_functions:
        files.append("postgresql/drop_functions.sql")
    for file in files:
        for statement in _statements(file, table.schema):
            connection.execute(statement)


def _options(schema: str | None) -> dict[str, object]:
    return {"version_table": VERSION_TABLE, "version_table_schema": schema}


def _script() -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(_directory()))


def _directory() -> Path:
    here = Path(__file__).parent
    in_wheel, in_checkout = here / "_migrations", here.parent.parent / "migrations"
    return in_wheel if in_wheel.is_dir() else in_checkout


_VIEWS = (*VIEWS_WITHOUT_CONTENT, *DETAILED_VIEWS)

# Not from the text of `home`, which has more quotes under quote_all_identifiers.
_SCHEMA_OF_HOME = (
    "(SELECT c.relnamespace::regnamespace FROM pg_class c WHERE c.oid = home AND NOT pg_table_is_visible(home))"
)

_PLACES = re.compile(r"\{home\}|\{schema\}|\$sqlmq\$")

_FOLLOWING = re.compile(r"    \{follow\}\n(.*?)    \{end\}\n", re.DOTALL)


def _following(part: re.Match[str]) -> str:
    """Return *part* of a function twice: by the names of now, and by bare names if the schema was renamed since.

    The tables are where ``home`` is. Its schema is put before the caller's search_path, and taken away again at the end. An
    error restores the path with the transaction.
    """
    body = re.sub("^(?=.)", "    ", part[1], flags=re.MULTILINE)
    return (
        f"    IF home = to_regclass({{home}}) THEN\n{body}"
        "    ELSE\n"
        "        path := current_setting('search_path');\n"
        f"        PERFORM set_config('search_path', concat_ws(', ', {_SCHEMA_OF_HOME}, nullif(path, '')), true);\n"
        f"{body.replace('{schema}', '')}"
        "        PERFORM set_config('search_path', path, true);\n"
        "    END IF;\n"
    )


# A statement with the comment before it. Bodies are quoted by $sqlmq$ and may contain semicolons.
_STATEMENT = re.compile(r"\s*((?:--[^\n]*|\$sqlmq\$.*?\$sqlmq\$|[^;$])++);", re.DOTALL)
