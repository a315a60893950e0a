"""Names and texts of exceptions that may have none. What comes out of a handler as a whole: contract/test_handler_outcomes."""

from __future__ import annotations

import logging

import pytest

from sqlmq.errors import DatabaseBusyError
from sqlmq.hooks.error_text import (
    UnprintableError,
    full_type_name,
    printable,
    text_of,
    traceback_of,
    type_name,
)
from sqlmq.hooks.log_events import log_fields


class NoTextError(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


NoModuleError = type("NoModuleError", (Exception,), {"__module__": None})


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:  # noqa: BLE001 - it has a traceback now
        return caught


def test_an_ordinary_exception_is_shown_as_python_shows_it() -> None:
    error = raised(ValueError("no number"))

    assert (type_name(error), full_type_name(error), text_of(error)) == ("ValueError", "ValueError", "no number")
    assert full_type_name(DatabaseBusyError("busy")) == "sqlmq.errors.DatabaseBusyError"
    assert "in raised" in traceback_of(error)
    assert traceback_of(error).endswith("ValueError: no number\n")
    assert printable(error) is error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        pytest.param(NoTextError(), "(its text can't be printed)", id="no text"),
        pytest.param(NoModuleError("x"), "x", id="no module"),
        pytest.param(ValueError("half \ud800"), "half \\ud800", id="half a character"),
        pytest.param(ValueError(b"\xff"), "b'\\xff'", id="bytes"),
    ],
)
def test_no_exception_is_without_a_name_a_text_and_a_traceback(error: Exception, text: str) -> None:
    caught = raised(error)

    assert text_of(caught) == text
    assert type_name(caught) in full_type_name(caught)
    assert "in raised" in traceback_of(caught)
    traceback_of(caught).encode()


def test_a_log_record_of_an_exception_that_can_not_be_printed_has_its_traceback() -> None:
    caught = raised(ValueError("half \ud800"))

    shown = printable(caught)
    record = logging.LogRecord("sqlmq", logging.ERROR, "", 0, "", None, (type(shown), shown, shown.__traceback__))

    assert isinstance(shown, UnprintableError)
    line = logging.Formatter().format(record)
    assert "in raised" in line
    assert line.endswith("UnprintableError: ValueError: half \\ud800")
    line.encode()


def test_the_fields_of_a_log_record_have_a_name_for_each_error() -> None:
    assert log_fields("retry", error=NoModuleError("x"))["sqlmq_error"] == "NoModuleError"
