"""The database of one MQ while the MQ is open: what the MQ itself and its admin ask of it."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from sqlmq.errors import DatabaseUnavailableError, MQClosedError, UnknownTopicError
from sqlmq.hooks.log_events import log_fields
from sqlmq.model.validation import check_topic
from sqlmq.operations.admin import topics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlmq.database.database import Database, Operation
    from sqlmq.model.config import MQConfig
    from sqlmq.store.topics import Topic

log = logging.getLogger("sqlmq.admin")

T = TypeVar("T")
P = ParamSpec("P")


class DatabaseAccess:
    """Runs operations in transactions of their own. Raises MQClosedError once the MQ is closed. Shared by threads."""

    def __init__(self, database: Database, config: MQConfig, in_use: object) -> None:
        self.database = database
        self.config = config
        self._in_use = in_use
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the MQ is closed, or is closing."""
        return self._closed

    def close(self) -> None:
        """Refuse every operation from now on."""
        self._closed = True

    def check_open(self) -> None:
        """Raise MQClosedError if the MQ is closed."""
        if self._closed:
            raise MQClosedError

    def read(self, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run *operation*, which writes no row, and return its result."""
        with self._while_open():
            return self.database.read(operation, *args, **kwargs)

    def write(self, operation: Operation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run *operation* in one transaction and return its result. It may run several times, as in ``Database.write``."""
        with self._while_open():
            return self.database.write(operation, *args, **kwargs)

    def find_or_create_topic(self, name: str) -> Topic:
        """Return the topic *name*. A missing one is created, unless the MQ's ``create_topics`` is off: UnknownTopicError."""
        check_topic(name)
        try:
            return self.read(topics.find_topic, name)
        except UnknownTopicError:
            if not self.config.create_topics:
                raise
        self.write(topics.create_topic, name, self.config.default_partitions, None)
        return self.read(topics.find_topic, name)

    def log_if_smaller(self, name: str, wanted: int) -> None:
        """Log a warning if topic *name* exists with fewer than *wanted* partitions."""
        with contextlib.suppress(UnknownTopicError):  # it was deleted meanwhile
            found = self.read(topics.find_topic, name).partitions
            if found < wanted:
                log.warning(
                    "Topic %r exists with %d partition(s), not %d. admin.add_partitions makes it grow.",
                    name,
                    found,
                    wanted,
                    extra=log_fields("topic smaller", topic=name),
                )

    @contextlib.contextmanager
    def _while_open(self) -> Iterator[None]:
        self.check_open()
        try:
            yield
        except DatabaseUnavailableError:
            self.check_open()  # another thread has closed the MQ meanwhile
            raise
