"""The queue, as Django's transactions use it."""

from __future__ import annotations

from django.db import connection


def publish(topic: str, *, key: str, value: str) -> None:
    """Publish a message in the transaction that is open on Django's connection.

    Make it the last thing inside ``transaction.atomic()``: from here to the commit the key's partition is locked, and
    other producers of that partition wait.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT message_offset FROM sqlmq_produce(%s, %s, %s)", [topic, key, value])
