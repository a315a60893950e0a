"""Mutations of retention: nothing goes that a limit or a group keeps."""

from __future__ import annotations

from tests.mutations.mutation import OPERATIONS, STORE, Edit, Mutation

MUTATIONS = (
    Mutation(
        "groups-unprotected",
        "Retention deletes messages that a group has not read.",
        ("tests/unit/test_retention.py",),
        (
            Edit(
                "src/sqlmq/model/retention.py",
                "    if not retention.protect_groups:\n        return end\n",
                "    if not retention.protect_groups or start < end:\n        return end\n",
            ),
        ),
    ),
    Mutation(
        "one-kept-too-few",
        "Retention keeps one message fewer than max_messages.",
        ("tests/contract/test_retention.py::test_only_the_newest_messages_stay",),
        (
            Edit(
                f"{OPERATIONS}/retention.py",
                "self._extent.end - self._terms.max_messages)",
                "self._extent.end - self._terms.max_messages + 1)",
            ),
        ),
    ),
    Mutation(
        "one-deleted-too-many",
        "The message at the new start of a partition is deleted with those below it.",
        ("tests/contract/test_retention.py::test_only_the_newest_messages_stay",),
        (
            Edit(
                f"{STORE}/retention.py",
                "deleted = conn.execute(delete(m).where(*_range(dialect, partition_id, start, end))).rowcount",
                "deleted = conn.execute(delete(m).where(*_range(dialect, partition_id, start, end + 1))).rowcount",
            ),
        ),
    ),
    Mutation(
        "dead-letters-unprotected",
        "Retention deletes messages that a group has as dead letters.",
        ("tests/contract/test_retention.py::test_a_dead_letter_keeps_the_log_until_it_is_discarded",),
        (
            Edit(
                f"{STORE}/retention.py",
                "        .where(k.c.group_id == g.c.id, k.c.partition_id == partition_id)\n",
                '        .where(k.c.group_id == g.c.id, k.c.partition_id == partition_id, k.c.state != "dead")\n',
            ),
        ),
    ),
)
