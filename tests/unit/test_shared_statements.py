"""What engines of tests share: compiled statements, but only those that are alike for both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, event, select

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.engine.interfaces import ExecutionContext

TABLE = Table("shared_statement", MetaData(), Column("number", Integer))


def compilations(engine: Engine) -> list[object]:
    """The compiled statements with which *engine* reads the table."""
    found: list[object] = []

    def note(
        _conn: Connection, _cursor: object, _sql: str, _values: object, context: ExecutionContext, _many: bool
    ) -> None:
        found.append(context.compiled)

    with engine.connect() as connection:
        TABLE.create(connection, checkfirst=True)
        event.listen(connection, "before_cursor_execute", note)
        connection.execute(select(TABLE)).all()
    return found


def test_two_engines_of_one_kind_share_a_compiled_statement() -> None:
    (first,) = compilations(create_engine("sqlite://"))
    (second,) = compilations(create_engine("sqlite://"))

    assert first is second


def test_engines_whose_statements_may_differ_share_none() -> None:
    (first,) = compilations(create_engine("sqlite://"))
    (second,) = compilations(create_engine("sqlite://", paramstyle="named"))

    assert first is not second
