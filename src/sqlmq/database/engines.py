"""Engines, made from the target that the user gave."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import URL, make_url
from sqlalchemy import exc as sa_exc

from sqlmq.dialects import blocking, canonical, dialect_named, without_secrets
from sqlmq.errors import InvalidURLError, SqlmqError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from sqlmq.dialects import Dialect


def read_url(target: str | URL) -> URL:
    """Return *target* with SQLAlchemy's name of the database. Raises InvalidURLError.

    Blanks and newlines around a URL are none of its parts. They come with secrets and variables that a shell has written.
    """
    try:
        return canonical(make_url(target.strip() if isinstance(target, str) else target))
    except (sa_exc.ArgumentError, ValueError):
        message = (
            "Not a database URL. Expected sqlite:///file.db or postgresql://user:password@host/database. Special "
            "characters in a password are written in percent encoding, such as %40 for @."
        )
        raise InvalidURLError(message) from None


def open_engine(target: object, schema: str | None) -> tuple[Dialect, Engine]:
    """Create the engine for the URL *target*, with its dialect. Raises TypeError or InvalidURLError."""
    if not isinstance(target, str | URL):
        hint = "; AsyncMQ takes it" if hasattr(target, "sync_engine") else ""
        message = f"MQ takes a database URL or a SQLAlchemy Engine, not {type(target).__name__}{hint}."
        raise TypeError(message)
    url = blocking(read_url(target), is_made=False)
    dialect = dialect_named(url.get_backend_name(), schema)
    try:
        return dialect, dialect.create_engine(url)
    except (sa_exc.ArgumentError, ModuleNotFoundError, TypeError, ValueError) as error:
        if isinstance(error, SqlmqError):
            raise
        message = f"Cannot create an engine for {without_secrets(url)}: {error}"
        raise InvalidURLError(message) from None
