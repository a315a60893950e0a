"""`alembic revision --autogenerate` in an application. With our ``include_name`` it proposes nothing about our tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic.autogenerate import produce_migrations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine

from case import Case, run, upgrade
from sqlmq import migrate

if TYPE_CHECKING:
    from alembic.operations.ops import MigrateOperation

metadata = MetaData()
Table("customer", metadata, Column("id", Integer, primary_key=True))


def judge(case: Case) -> None:
    engine = create_engine(case.url)
    upgrade(case.url)
    if not case.is_sqlite:
        upgrade(case.url, schema="queue")
    for include_schemas in (False, True):
        proposed = propose(engine, include_schemas=include_schemas, compare_type=True, compare_server_default=True)
        ours = [operation for operation in proposed if "sqlmq" in f"{name_of(operation)} {index_of(operation)}"]
        if ours:
            case.fault(f"include_schemas={include_schemas}: {ours[0]}")
        if len(proposed) != 1:
            case.fault(f"include_schemas={include_schemas}: {len(proposed)} operations instead of 1")
    find_tables_with_similar_names(case, engine)


def find_tables_with_similar_names(case: Case, engine: Engine) -> None:
    """Look for a table of the application whose name only begins like ours."""
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE sqlmqfoo (id integer)")
    if "sqlmqfoo" not in {name_of(operation) for operation in propose(engine)}:
        case.fault("a table sqlmqfoo of the application is hidden")


def propose(engine: Engine, **options: bool) -> list[MigrateOperation]:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": migrate.include_name, **options})
        operations = produce_migrations(context, metadata).upgrade_ops
        return list(operations.ops) if operations is not None else []


def name_of(operation: MigrateOperation) -> str:
    return str(getattr(operation, "table_name", ""))


def index_of(operation: MigrateOperation) -> str:
    return str(getattr(operation, "index_name", ""))


if __name__ == "__main__":
    run(judge)
