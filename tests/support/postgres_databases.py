"""Databases on the run's Postgres, one for each test: made by copying, and used again when they are as they were made.

Making one takes 60 ms, and several times that when the machine is busy; emptying one takes 10. What a test has changed beyond
rows (structure, rights, settings, statistics) shows in the catalogs; such a database is dropped.
"""

from __future__ import annotations

import itertools
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from sqlmq.migrate import upgrade

if TYPE_CHECKING:
    from collections.abc import Iterator

ENDED_SECONDS = 2
"""How long sessions may take to end that are just ending."""

OPEN_TRANSACTIONS = text(
    "SELECT application_name || ': ' || state || ' after ' || query FROM pg_stat_activity"
    " WHERE datname = current_database() AND state LIKE 'idle in transaction%'"
)
END_OTHER_SESSIONS = text(
    "SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
)
PREPARED_TRANSACTIONS = text("SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()")

# Tables that tests make beside ours go, with what depends on them. Ours are emptied, and numbered from the start again.
EMPTY = text(r"""
    DO $$
    DECLARE found record;
    BEGIN
        FOR found IN
            SELECT c.oid::regclass AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind = 'r' AND c.relname NOT LIKE 'sqlmq\_%' AND n.nspname !~ '^(pg_|information_schema$)'
        LOOP
            EXECUTE format('DROP TABLE IF EXISTS %s CASCADE', found.name);
        END LOOP;
        FOR found IN
            SELECT c.oid::regclass AS name FROM pg_class c
            WHERE c.relkind = 'r' AND c.relname LIKE 'sqlmq\_%' AND c.relname <> 'sqlmq_version'
        LOOP
            EXECUTE format('DELETE FROM %s', found.name);
        END LOOP;
        FOR found IN
            SELECT c.oid::regclass AS name FROM pg_class c WHERE c.relkind = 'S' AND c.relname LIKE 'sqlmq\_%'
        LOOP
            PERFORM setval(found.name, 1, false);
        END LOOP;
    END $$
""")

# Everything of the database but the rows of its tables, as one text.
STRUCTURE = text(r"""
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
""")


class PostgresDatabases:
    """Makes databases by copying a migrated one, empties and drops them."""

    def __init__(self, url: str, worker: str) -> None:
        self._url = make_url(url)
        # Several runs may share one server.
        self._prefix = f"sqlmq_test_{worker}_{uuid4().hex[:8]}"
        self._admin = create_engine(self._url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        self._templates: dict[str | None, tuple[str, str]] = {}
        self._clean: dict[str | None, list[str]] = {}
        self._made = 0

    def url(self, name: str) -> str:
        return self._url.set(database=name).render_as_string(hide_password=False)

    @contextmanager
    def lend(self, schema: str | None, *, new: bool = False) -> Iterator[str]:
        """Give a database with empty tables in *schema*; in the end, assert that no transaction was left open in it.

        In a *new* one the tables never held a row.
        """
        clean = self._clean.setdefault(schema, [])
        name = clean.pop() if clean and not new else self.create(schema)
        is_clean = False
        try:
            yield name
            left_open, is_clean = self._tidy(name, schema)
        finally:
            if is_clean:
                clean.append(name)
            else:
                self.drop(name)
        assert left_open == [], "the test left transactions open"

    def create(self, schema: str | None) -> str:
        """Make a database with the tables in *schema* and return its name."""
        template, _ = self._template(schema)
        return self._create_next(f"TEMPLATE {template}")

    def create_empty(self) -> str:
        """Make a database without any tables and return its name."""
        return self._create_next("TEMPLATE template0")

    def drop(self, name: str) -> None:
        with self._admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))

    def close(self) -> None:
        for name in [*(template for template, _ in self._templates.values()), *itertools.chain(*self._clean.values())]:
            self.drop(name)

    def _tidy(self, name: str, schema: str | None) -> tuple[list[str], bool]:
        """Empty the database; return which sessions sat in an open transaction, and whether it is as it was made."""
        with self._connect(name) as connection:
            left_open = _transactions_left_open(connection)
            if left_open or connection.execute(PREPARED_TRANSACTIONS).scalar_one():
                return left_open, False
            connection.execute(END_OTHER_SESSIONS)
            try:
                connection.execute(EMPTY)
            except DBAPIError:
                return [], False
            return [], _structure(connection, schema) == self._template(schema)[1]

    def _template(self, schema: str | None) -> tuple[str, str]:
        """The database to copy, and what its structure is."""
        if schema not in self._templates:
            name = self._create(f"{self._prefix}_template_{schema or 'default'}", "TEMPLATE template0")
            with create_engine(self.url(name), poolclass=NullPool).begin() as connection:
                if schema is not None:
                    connection.execute(text(f"CREATE SCHEMA {schema}"))
                upgrade(connection, schema=schema)
            with self._connect(name) as connection:
                self._templates[schema] = name, _structure(connection, schema)
        return self._templates[schema]

    @contextmanager
    def _connect(self, name: str) -> Iterator[Connection]:
        engine = create_engine(self.url(name), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            yield connection

    def _create_next(self, options: str) -> str:
        self._made += 1
        return self._create(f"{self._prefix}_{self._made}", options)

    def _create(self, name: str, options: str) -> str:
        with self._admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} {options}"))
        return name


def _transactions_left_open(connection: Connection) -> list[str]:
    """Say which sessions sit in an open transaction, once those that are just ending have had time to end."""
    deadline = time.monotonic() + ENDED_SECONDS
    while True:
        found = list(connection.execute(OPEN_TRANSACTIONS).scalars())
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def _structure(connection: Connection, schema: str | None) -> str:
    """All of the database but the rows in its tables, and the revision its tables are at."""
    version = "sqlmq_version" if schema is None else f"{schema}.sqlmq_version"
    structure = connection.execute(STRUCTURE).scalar_one()
    if f"relation {schema or 'public'}.sqlmq_version " not in structure:
        return "no tables"
    return f"{structure}\n{connection.execute(text(f'SELECT * FROM {version}')).all()}"
