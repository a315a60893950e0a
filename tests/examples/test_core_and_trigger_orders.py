from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.examples.programs import run

if TYPE_CHECKING:
    from tests.conftest import DatabaseUnderTest


@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_orders_by_core_are_published_with_their_rows(database: DatabaseUnderTest) -> None:
    result = run("examples/core_orders.py", database.url)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "rolled back: no coffee" in result.stdout
    assert "left out: no jam" in result.stdout
    assert "2 orders; the kitchen got ['Ada wants tea', 'Grace wants scones']" in result.stdout


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_orders_written_by_plain_sql_are_published_by_a_trigger(database: DatabaseUnderTest) -> None:
    result = run("examples/trigger_orders.py", database.url)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "order 1 of Ada is paid" in result.stdout
    assert "is sent" not in result.stdout
