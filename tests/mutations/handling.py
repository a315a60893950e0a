"""Mutations of attempts, parked messages and dead letters."""

from __future__ import annotations

from tests.mutations.mutation import OPERATIONS, STORE, Edit, Mutation

MUTATIONS = (
    Mutation(
        "failure-forgotten",
        "A message whose handler failed is not parked, but the position moves on.",
        ("tests/contract/test_run.py::test_a_failing_key_is_set_aside_and_the_others_go_on",),
        (
            Edit(
                f"{OPERATIONS}/attempts.py",
                "is_ours = _put(conn, dialect, claimed_partition, outcome) and _move(",
                'is_ours = (outcome.state == "waiting" or _put(conn, dialect, claimed_partition, outcome)) and _move(',
            ),
            Edit(
                "src/sqlmq/consumer/worker/attempts.py",
                "        if decision.action is FailureAction.PARK:\n            parked_keys.put(entry)\n",
                "",
            ),
        ),
    ),
    Mutation(
        "parked-in-memory-only",
        "A message whose handler failed is parked in the process, but not in the database.",
        ("tests/contract/test_run.py::test_what_was_set_aside_waits_for_the_next_run",),
        (
            Edit(
                f"{OPERATIONS}/attempts.py",
                "is_ours = _put(conn, dialect, claimed_partition, outcome) and _move(",
                'is_ours = (outcome.state == "waiting" or _put(conn, dialect, claimed_partition, outcome)) and _move(',
            ),
        ),
    ),
    Mutation(
        "one-attempt-too-many",
        "A message is attempted once more than max_attempts.",
        ("tests/unit/test_retry.py",),
        (
            Edit(
                "src/sqlmq/model/retry.py",
                "retry.max_attempts is not None and attempts >= retry.max_attempts",
                "retry.max_attempts is not None and attempts > retry.max_attempts",
            ),
        ),
    ),
    Mutation(
        "retried-dead-letter-comes-twice",
        "A dead letter that was retried and handled is handled again by the next owner.",
        ("tests/contract/test_parked.py::test_dead_letters_of_a_key_are_retried_in_order_and_before_what_came_later",),
        (
            Edit(
                f"{OPERATIONS}/attempts.py",
                "    if offset is not None:\n"
                "        parked.remove(conn, dialect, claimed_partition.group, claimed_partition.claim.partition_id, "
                "offset)\n",
                "",
            ),
        ),
    ),
    Mutation(
        "decision-overwritten",
        "An attempt that fails after an operator has retried its message overwrites the decision.",
        ("tests/contract/test_parked.py::test_an_attempt_that_fails_after_the_message_was_retried_counts_for_nothing",),
        (
            Edit(
                f"{STORE}/parked.py",
                "    if record.is_known:\n"
                "        known.append(k.c.attempts.in_((record.attempts, record.attempts - record.attempt_open)))\n",
                "",
            ),
        ),
    ),
    Mutation(
        "parked-in-order-of-due",
        "The parked messages of a key are attempted in the order in which they are due.",
        ("tests/contract/test_parked.py::test_a_retried_dead_letter_comes_before_those_of_its_key_that_wait",),
        (
            Edit(
                f"{STORE}/parked.py",
                "        .order_by(k.c.partition_id, k.c.msg_offset)\n    )\n    return [ParkedRow(",
                "        .order_by(k.c.partition_id, k.c.due_at)\n    )\n    return [ParkedRow(",
            ),
        ),
    ),
    Mutation(
        "empty-key-waits-for-none",
        "Messages with an empty key do not wait for a parked message of that key.",
        ("tests/unit/test_parked_keys.py",),
        (
            Edit(
                "src/sqlmq/consumer/worker/parked_keys.py",
                "return self.offset if self.key is None else self.key",
                "return self.key or self.offset",
            ),
        ),
    ),
    Mutation(
        "headers-lost-in-a-copy",
        "Copies of parked messages have the headers that name their origin, and no others.",
        ("tests/contract/test_parked.py::test_a_copy_has_what_the_message_has_and_says_where_it_comes_from",),
        (
            Edit(
                f"{OPERATIONS}/admin/parked.py",
                "return Message(row.value, row.key, headers | _origin(scope, row, headers))",
                "return Message(row.value, row.key, _origin(scope, row, headers))",
            ),
        ),
    ),
    Mutation(
        "uncopied-discarded",
        "A move discards messages that it could not copy, because the log does not have them any more.",
        ("tests/contract/test_parked.py::test_a_message_that_is_in_the_log_no_more_is_shown_without_itself",),
        (
            Edit(
                f"{OPERATIONS}/admin/parked.py",
                "_discard(conn, dialect, scope.group, selection._replace(only_in_log=True))",
                "_discard(conn, dialect, scope.group, selection)",
            ),
        ),
    ),
    Mutation(
        "forgotten-one-too-few",
        "After a group is moved back, the parked message at the new position comes twice.",
        ("tests/contract/test_replay.py::test_moved_back_what_was_set_aside_from_there_on_comes_again_once",),
        (Edit(f"{STORE}/parked.py", "or_(k.c.msg_offset >= position,", "or_(k.c.msg_offset > position,"),),
    ),
)
