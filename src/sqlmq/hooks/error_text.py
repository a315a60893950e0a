"""Names and texts of exceptions that we did not write: asking such an exception for its text may raise.

The functions never raise. They ask as ``traceback`` does, and replace what can't be had by ``_NO_TEXT``, and what no
stream can encode, lone surrogates, by escapes.
"""

from __future__ import annotations

import traceback

_NO_TEXT = "(its text can't be printed)"
_NO_NAME = "(a class without a name)"


def type_name(error: BaseException) -> str:
    """Return the name of the class of *error*, without its module."""
    try:
        return _exact(type(error).__qualname__)
    except BaseException:  # noqa: BLE001 - a metaclass may raise anything
        return _NO_NAME


def full_type_name(error: BaseException) -> str:
    """Return the name of the class of *error* with its module, unless that is ``builtins`` or unknown."""
    try:
        module: object = type(error).__module__
    except BaseException:  # noqa: BLE001 - a metaclass may raise anything
        module = None
    return type_name(error) if not isinstance(module, str) or module == "builtins" else f"{module}.{type_name(error)}"


def text_of(error: BaseException) -> str:
    """Return what *error* says."""
    try:
        return _exact(str(error))
    except BaseException:  # noqa: BLE001 - as in `traceback`
        return _NO_TEXT


def traceback_of(error: BaseException) -> str:
    """Return the traceback of *error* as text, as far as it can be had."""
    try:
        return _exact("".join(traceback.format_exception(error)))
    except BaseException:  # noqa: BLE001 - before Python 3.13, a class whose module is None is enough
        return "".join([*_frames(error), f"{full_type_name(error)}: {text_of(error)}\n"])


def printable(error: BaseException) -> BaseException:
    """Return *error*, for ``exc_info`` of a log record; or another one in its place if it can't be printed."""
    try:
        isinstance(error, Exception)  # as `logging` asks; that asks the exception
        "".join(traceback.format_exception(error)).encode()
    except BaseException:  # noqa: BLE001 - see traceback_of
        return UnprintableError(f"{full_type_name(error)}: {text_of(error)}").with_traceback(error.__traceback__)
    return error


class UnprintableError(Exception):
    """Stands in a log record for an exception whose traceback can't be printed."""


def _frames(error: BaseException) -> list[str]:
    try:
        return ["Traceback (most recent call last):\n", *traceback.format_tb(error.__traceback__)]
    except BaseException:  # noqa: BLE001 - a source that can't be read
        return []


def _exact(text: str) -> str:
    """Return *text* as a str that can be encoded, and not of a subclass, whose methods may raise."""
    return str.encode(text, errors="backslashreplace").decode()
