"""Databases on the run's Postgres, one for each test: made by copying, and used again when they are as they were made.

Making one takes 60 ms, emptying one 3: by a session that is kept open for it, with two prepared statements. What a test has
changed beyond rows (structure, rights, settings, statistics) shows in the catalogs; such a database is dropped.
"""

from __future__ import annotations

import itertools
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from sqlmq.migrate import upgrade

if TYPE_CHECKING:
    from collections.abc import Iterator

APPLICATION_NAME = "sqlmq tests"
"""The name of the session that is kept open to each database, for tests that count sessions."""

ENDED_SECONDS = 2
"""How long sessions may take to end that are just ending."""
ENDING_SECONDS = 0.02
"""How long most of them take at the most."""

SESSIONS = """
    SELECT pid, CASE WHEN state LIKE 'idle in transaction%' THEN application_name || ': ' || state || ' after ' || query END
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
PREPARED_TRANSACTIONS = "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()"

# Tables that tests make beside ours.
DROP_TABLES_OF_TESTS = r"""
    DO $$
    DECLARE found record;
    BEGIN
        FOR found IN
            SELECT c.oid::regclass AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind = 'r' AND c.relname NOT LIKE 'sqlmq\_%' AND n.nspname !~ '^(pg_|information_schema$)'
        LOOP
            EXECUTE format('DROP TABLE IF EXISTS %s CASCADE', found.name);
        END LOOP;
    END $$
"""

# The tables are emptied in one statement, so that references are checked at its end, in any order.
EMPTYING = r"""
    SELECT 'WITH ' || string_agg(format('t%s AS (DELETE FROM %s)', oid, oid::regclass), ', ') || ' SELECT '
        || (SELECT string_agg(format('setval(%L, 1, false)', oid::regclass), ', ') FROM pg_class
            WHERE relkind = 'S' AND relname LIKE 'sqlmq\_%')
    FROM pg_class WHERE relkind = 'r' AND relname LIKE 'sqlmq\_%' AND relname <> 'sqlmq_version'
"""

# The version of each catalog row that is not the server's own. It changes with each DDL, also with one that is undone.
CATALOG = """
    SELECT ARRAY[
        (SELECT sum(hashtext(concat(ctid, xmin))::bigint) FROM pg_class WHERE oid >= 16384),
        (SELECT sum(hashtext(concat(ctid, xmin))::bigint) FROM pg_attribute WHERE attrelid >= 16384),
        (SELECT sum(hashtext(concat(ctid, xmin))::bigint) FROM pg_attrdef),
        (SELECT sum(hashtext(concat(ctid, xmin))::bigint) FROM pg_constraint WHERE oid >= 16384),
        (SELECT sum(hashtext(concat(ctid, xmin))::bigint) FROM pg_index WHERE indexrelid >= 16384),
        (SELECT sum(hashtext(concat(ctid, xmin))::bigint) FROM pg_trigger),
        (SELECT sum(hashtext(concat(ctid, xmin))::bigint) FROM pg_rewrite WHERE oid >= 16384),
        (SELECT sum(hashtext(concat(ctid, xmin))::bigint) FROM pg_proc WHERE oid >= 16384),
        (SELECT sum(hashtext(concat(ctid, xmin))::bigint) FROM pg_type WHERE oid >= 16384),
        (SELECT sum(hashtext(concat(ctid, xmin))::bigint) FROM pg_namespace),
        (SELECT sum(hashtext(concat(ctid, xmin))::bigint) FROM pg_extension),
        (SELECT sum(hashtext(concat(ctid, xmin))::bigint) FROM pg_statistic WHERE starelid >= 16384),
        (SELECT sum(hashtext(concat(setrole, setconfig))::bigint) FROM pg_db_role_setting
            JOIN pg_database d ON d.oid = setdatabase WHERE datname = current_database()),
        (SELECT hashtext(concat(datacl, datallowconn, datconnlimit, datdba))::bigint
            FROM pg_database WHERE datname = current_database())
    ]
"""

# Everything of the database but the rows of its tables, as one text.
STRUCTURE = r"""
    WITH own AS (SELECT * FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema$)'),
    relation AS (SELECT n.nspname || '.' || c.relname AS name, c.* FROM pg_class c JOIN own n ON n.oid = c.relnamespace)
    SELECT string_agg(line, E'\n' ORDER BY line) FROM (
        SELECT concat_ws(' ', 'schema', nspname, nspowner, nspacl) AS line FROM own
        UNION ALL SELECT concat_ws(' ', 'relation', name, relkind, relowner, relacl, reloptions, relpersistence,
            relrowsecurity) FROM relation
        UNION ALL SELECT concat_ws(' ', 'column', r.name, attname, atttypid, atttypmod, attnotnull, attisdropped, attacl,
            attstattarget, pg_get_expr(adbin, adrelid))
            FROM pg_attribute a JOIN relation r ON r.oid = attrelid LEFT JOIN pg_attrdef d ON (adrelid, adnum) = (attrelid, attnum)
        UNION ALL SELECT concat_ws(' ', 'statistics', r.name, s.staattnum) FROM pg_statistic s JOIN relation r ON r.oid = s.starelid
        UNION ALL SELECT concat_ws(' ', 'constraint', conname, pg_get_constraintdef(c.oid))
            FROM pg_constraint c JOIN own n ON n.oid = connamespace
        UNION ALL SELECT concat_ws(' ', 'trigger', r.name, tgname, tgenabled) FROM pg_trigger JOIN relation r ON r.oid = tgrelid
        UNION ALL SELECT concat_ws(' ', 'function', n.nspname, oidvectortypes(proargtypes), proname, proowner, proacl, proconfig,
            md5(prosrc)) FROM pg_proc JOIN own n ON n.oid = pronamespace
        UNION ALL SELECT concat_ws(' ', 'view', name, md5(pg_get_viewdef(oid))) FROM relation WHERE relkind IN ('v', 'm')
        UNION ALL SELECT concat_ws(' ', 'extension', extname) FROM pg_extension
        UNION ALL SELECT concat_ws(' ', 'settings', setrole, setconfig) FROM pg_db_role_setting
            JOIN pg_database d ON d.oid = setdatabase WHERE datname = current_database()
        UNION ALL SELECT concat_ws(' ', 'database', datacl, datallowconn, datconnlimit, datdba)
            FROM pg_database WHERE datname = current_database()
    ) lines
"""


@dataclass(slots=True)
class _Database:
    """One database, and what is needed to empty it."""

    name: str
    schema: str | None
    catalog: object = None
    """Its CATALOG as it was made, or as it was when its structure was last compared."""
    session: psycopg.Connection[Any] | None = field(default=None, repr=False)


class PostgresDatabases:
    """Makes databases by copying a migrated one, empties and drops them."""

    def __init__(self, url: str, worker: str) -> None:
        self._url = make_url(url)
        # Several runs may share one server.
        self._prefix = f"sqlmq_test_{worker}_{uuid4().hex[:8]}"
        self._admin: psycopg.Connection[Any] | None = None
        self._templates: dict[str | None, _Template] = {}
        self._clean: dict[str | None, list[_Database]] = {}
        self._made = 0

    def url(self, name: str) -> str:
        return self._url.set(database=name).render_as_string(hide_password=False)

    @contextmanager
    def lend(self, schema: str | None, *, new: bool = False) -> Iterator[str]:
        """Provide a database with empty tables in *schema*; in the end, assert that no transaction was left open in it.

        In a *new* one the tables never held a row.
        """
        clean = self._clean.setdefault(schema, [])
        database = clean.pop() if clean and not new else self._copy(schema)
        is_clean = False
        try:
            yield database.name
            left_open, is_clean = self._tidy(database)
        finally:
            if is_clean:
                clean.append(database)
            else:
                self._discard(database)
        assert left_open == [], f"the test left transactions open: {left_open}"

    def create(self, schema: str | None) -> str:
        """Make a database with the tables in *schema* and return its name."""
        return self._create_next(f"TEMPLATE {self._template(schema).name}")

    def create_empty(self, options: str = "") -> str:
        """Make a database without any tables, with *options* of ``CREATE DATABASE``, and return its name."""
        return self._create_next(f"TEMPLATE template0 {options}")

    def drop(self, name: str) -> None:
        self._administer(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def close(self) -> None:
        for database in itertools.chain(*self._clean.values()):
            self._discard(database)
        for template in self._templates.values():
            self.drop(template.name)
        if self._admin is not None:
            self._admin.close()

    def _copy(self, schema: str | None) -> _Database:
        return _Database(self.create(schema), schema, self._template(schema).catalog)

    def _discard(self, database: _Database) -> None:
        if database.session is not None:
            database.session.close()
        self.drop(database.name)

    def _tidy(self, database: _Database) -> tuple[list[str], bool]:
        """Empty *database*; return which sessions sat in an open transaction, and whether it is as it was made."""
        session = self._session_of(database)
        left_open = _end_other_sessions(session)
        if left_open or _value(session, PREPARED_TRANSACTIONS):
            return left_open, False
        template = self._template(database.schema)
        try:
            if (catalog := _value(session, CATALOG)) != database.catalog:
                session.execute(DROP_TABLES_OF_TESTS)
                if _structure(session, database.schema) != template.structure:
                    return [], False
                catalog = _value(session, CATALOG)
            session.execute(template.emptying)
        except psycopg.Error:
            return [], False
        database.catalog = catalog
        return [], _revision(session, database.schema) == template.revision

    def _session_of(self, database: _Database) -> psycopg.Connection[Any]:
        """The session that is kept open to *database*; another one if a test has ended it."""
        if database.session is not None:
            try:
                database.session.execute("SELECT 1")
            except psycopg.OperationalError:
                database.session.close()
            else:
                return database.session
        database.session = self._connect(database.name)
        return database.session

    def _template(self, schema: str | None) -> _Template:
        """The database to copy, and what is to be known of it."""
        if schema not in self._templates:
            name = self._create(f"{self._prefix}_template_{schema or 'default'}", "TEMPLATE template0")
            engine = create_engine(self.url(name), poolclass=NullPool)
            with engine.begin() as connection:
                if schema is not None:
                    connection.execute(text(f"CREATE SCHEMA {schema}"))
                upgrade(connection, schema=schema)
            with self._connect(name) as session:
                self._templates[schema] = _Template(
                    name,
                    _value(session, CATALOG),
                    _structure(session, schema),
                    _revision(session, schema),
                    _value(session, EMPTYING),
                )
        return self._templates[schema]

    def _connect(self, name: str) -> psycopg.Connection[Any]:
        url = self._url.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
        return psycopg.connect(url, autocommit=True, application_name=APPLICATION_NAME)

    def _administer(self, statement: str) -> None:
        if self._admin is None or self._admin.closed:
            self._admin = self._connect(str(self._url.database))
        self._admin.execute(statement)

    def _create_next(self, options: str) -> str:
        self._made += 1
        return self._create(f"{self._prefix}_{self._made}", options)

    def _create(self, name: str, options: str) -> str:
        self._administer(f"CREATE DATABASE {name} {options}")
        return name


@dataclass(frozen=True, slots=True)
class _Template:
    """A migrated database, which the others are copies of."""

    name: str
    catalog: object
    structure: str
    revision: str
    emptying: str
    """The statement that empties our tables, and numbers from the start again."""


def _value(session: psycopg.Connection[Any], query: str) -> Any:
    row = session.execute(query).fetchone()
    assert row is not None
    return row[0]


def _end_other_sessions(session: psycopg.Connection[Any]) -> list[str]:
    """Wait until no other session is left; if some sit in an open transaction, end none and say which.

    Those that are just ending have a little time to end by themselves, then they are ended.
    """
    began = time.monotonic()
    while others := session.execute(SESSIONS).fetchall():
        left_open = [told for _, told in others if told is not None]
        seconds = time.monotonic() - began
        if seconds > ENDED_SECONDS:
            return left_open
        if not left_open and seconds > ENDING_SECONDS:
            # Without its own timeout, with which it looks every 100 ms only.
            session.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) pid", [[pid for pid, _ in others]])
        time.sleep(0.002)
    return []


def _structure(session: psycopg.Connection[Any], schema: str | None) -> str:
    """All of the database but the rows in its tables."""
    structure: str = _value(session, STRUCTURE)
    return structure if f"relation {schema or 'public'}.sqlmq_version " in structure else "no tables"


def _revision(session: psycopg.Connection[Any], schema: str | None) -> str:
    """The revision that the tables are at."""
    return str(session.execute(f"SELECT * FROM {schema or 'public'}.sqlmq_version").fetchall())
