"""Mutations of messages in an application's transaction, and of delayed messages."""

from __future__ import annotations

from tests.mutations.mutation import OPERATIONS, STORE, Edit, Mutation

_OUTBOX = "src/sqlmq/producer/outbox.py"

MUTATIONS = (
    Mutation(
        "published-after-rollback",
        "The messages of a transaction are published although it is rolled back, on Postgres.",
        ("tests/contract/test_outbox.py::test_a_message_is_never_in_the_log_when_its_transaction_failed",),
        (
            Edit(
                _OUTBOX,
                "        self._waiting.clear()\n",
                "        for one in self._waiting:\n"
                "            # With one writer, this would wait for the transaction that is being rolled back.\n"
                "            if not one.producer.database.dialect.one_writer:\n"
                "                one.producer.append_batch([produce.RoutedMessage(one.placed.message, one.placed.number)])\n"
                "        self._waiting.clear()\n",
            ),
        ),
    ),
    Mutation(
        "savepoint-ignored",
        "Rolling back a savepoint does not remove its messages.",
        ("tests/contract/test_outbox.py::test_a_savepoint_rolled_back_takes_its_messages_with_it",),
        (Edit(_OUTBOX, "        del self._waiting[count:]\n", ""),),
    ),
    Mutation(
        "not-published-by-async-sessions",
        "The messages of a transaction on a driver for asyncio are forgotten at its commit.",
        ("tests/contract/test_outbox.py::test_a_message_is_in_the_log_when_its_transaction_has_committed",),
        (
            Edit(
                _OUTBOX,
                "        waiting, self._waiting = self._waiting, []\n",
                "        waiting, self._waiting = self._waiting, []\n        if conn.dialect.is_async:\n            return\n",
            ),
        ),
    ),
    Mutation(
        "savepoint-ignored-by-async-sessions",
        "Rolling back a savepoint on a driver for asyncio does not remove its messages.",
        ("tests/contract/test_outbox.py::test_a_savepoint_rolled_back_takes_its_messages_with_it",),
        (
            Edit(
                _OUTBOX,
                "        del conn\n        names = [",
                "        if conn.dialect.is_async:\n            return\n        names = [",
            ),
        ),
    ),
    Mutation(
        "scheduled-outside-an-async-session",
        "Delayed messages are stored in a transaction of their own, not in that of the AsyncSession.",
        ("tests/contract/test_delayed_sessions.py::test_a_delayed_message_is_gone_when_its_transaction_failed",),
        (
            Edit(
                "src/sqlmq/aio/producer.py",
                "        return await carrier.run_sync(self._core.schedule, messages, partition, due)\n",
                "        return await self._threads.run(partial(self._core.schedule, None, messages, partition, due))\n",
            ),
        ),
    ),
    Mutation(
        "older-savepoint-ignored",
        "Rolling back a savepoint that is older than the first message does not remove its messages.",
        ("tests/contract/test_outbox.py::test_a_savepoint_begun_before_the_first_message_takes_it_back",),
        (
            Edit(
                _OUTBOX,
                "self._savepoints[index][1] if name in names else 0\n",
                "self._savepoints[index][1] if name in names else len(self._waiting)\n",
            ),
        ),
    ),
    Mutation(
        "published-after-prepare",
        "In two-phase commit, messages are appended after PREPARE, so the coordinator's decision is not theirs.",
        ("tests/databases/test_two_phase.py",),
        (Edit(_OUTBOX, '                event.listen(conn, "prepare_twophase", self._publish)\n', ""),),
    ),
    Mutation(
        "delivered-early",
        "Delayed messages are due at once.",
        ("tests/contract/test_delayed.py::test_a_delayed_message_is_in_the_log_when_it_is_due_and_not_before",),
        (
            Edit(
                f"{OPERATIONS}/staging.py",
                "slot = staged.slot(conn, dialect, set(ids), due)",
                "slot = staged.slot(conn, dialect, set(ids), 0.0)",
            ),
        ),
    ),
    Mutation(
        "headers-lost-in-a-move",
        "Messages that are moved into the log, delayed ones and staged ones, lose their headers.",
        ("tests/contract/test_delayed.py::test_key_value_and_headers_arrive_as_they_were_given",),
        (
            Edit(
                f"{STORE}/staged.py",
                "headers = [None if row.headers is None else row.headers.encode() for row in rows]",
                "headers: list[bytes | None] = [None for row in rows]",
            ),
        ),
    ),
    Mutation(
        "moved-without-lock",
        "A scheduler reads delayed messages without a lock, so one can be moved and cancelled.",
        ("tests/contract/test_delayed.py::test_a_message_whose_cancelling_was_rolled_back_is_moved_later",),
        (
            Edit(
                f"{STORE}/staged.py",
                "        .order_by(*in_order)\n        .with_for_update(skip_locked=True, of=s)\n",
                "        .order_by(*in_order)\n",
            ),
        ),
    ),
    Mutation(
        "moved-in-order-of-storing",
        "Messages that are due are moved in the order in which they were stored.",
        ("tests/contract/test_delayed.py::test_messages_are_delivered_in_the_order_in_which_they_are_due",),
        (Edit(f"{STORE}/staged.py", "in_order = (s.c.deliver_at, s.c.id)", "in_order = (s.c.id,)"),),
    ),
    Mutation(
        "moved-to-the-old-partition",
        "A delayed message of a topic that has grown goes to the old partition of its key.",
        ("tests/contract/test_growth.py::test_a_delayed_message_goes_where_its_key_has_gone",),
        (
            Edit(
                f"{OPERATIONS}/staging.py",
                "if known != topic.partitions and key is not None and known:",
                "if known > topic.partitions and key is not None and known:",
            ),
        ),
    ),
)
