"""Mutations of claims, leases, positions and transactions: one owner at a time, and no position without its work."""

from __future__ import annotations

from tests.mutations.mutation import OPERATIONS, POSTGRES, SQLITE, STORE, Edit, Mutation

_JOIN = "JOIN {prefix}sqlmq_claim c ON c.partition_id = new.partition_id AND c.epoch = new.epoch\n"
_OWN = "WHERE c.group_id = %b::bigint AND c.member_id = %b::bigint\n"
_LOCKED = "c.c.partition_id.in_(sorted(epochs)), c.c.member_id == member_id)\n"
_SAME_EPOCH = "for row in rows if epochs[row.partition_id] == row.epoch]"

MUTATIONS = (
    Mutation(
        "fence-skipped-postgres",
        "A commit is accepted for a partition that another member owns, on Postgres.",
        ("tests/contract/test_groups.py::test_a_zombies_commit_is_refused_and_changes_nothing",),
        (
            Edit(f"{POSTGRES}/dialect.py", _JOIN, _JOIN.replace(" AND c.epoch = new.epoch", "")),
            Edit(f"{POSTGRES}/dialect.py", _OWN, _OWN.replace("c.member_id = %b::bigint", "%b::bigint IS NOT NULL")),
        ),
    ),
    Mutation(
        "fence-skipped",
        "Locked claims are taken to be the member's, also if another member owns them: commits on SQLite, attempts, prunings.",
        ("tests/contract/test_groups.py::test_a_zombies_commit_is_refused_and_changes_nothing",),
        (
            Edit(f"{STORE}/claims.py", _LOCKED, "c.c.partition_id.in_(sorted(epochs)))\n"),
            Edit(f"{STORE}/claims.py", _SAME_EPOCH, "for row in rows]"),
        ),
    ),
    Mutation(
        "newer-epoch-accepted-postgres",
        "A commit is accepted if the member owns the partition again, or was moved, since it read the messages.",
        ("tests/contract/test_replay.py::test_a_commit_that_is_sent_again_after_a_seek_is_not_written",),
        (Edit(f"{POSTGRES}/dialect.py", _JOIN, _JOIN.replace("c.epoch = new.epoch", "c.epoch >= new.epoch")),),
    ),
    Mutation(
        "newer-epoch-accepted",
        "The same under the lock of a claim: commits on SQLite, attempts, prunings.",
        ("tests/contract/test_replay.py::test_a_commit_that_is_sent_again_after_a_seek_is_not_written",),
        (Edit(f"{STORE}/claims.py", _SAME_EPOCH, "for row in rows if row.epoch >= epochs[row.partition_id]]"),),
    ),
    Mutation(
        "owner-not-compared-postgres",
        "A zombie commits for a partition that was freed and that no member has taken yet, on Postgres.",
        (
            "tests/contract/test_transaction.py::test_a_member_whose_partition_transactions_have_read_on_moves_no_position",
        ),
        (Edit(f"{POSTGRES}/dialect.py", _OWN, _OWN.replace("c.member_id = %b::bigint", "%b::bigint IS NOT NULL")),),
    ),
    Mutation(
        "owner-not-compared",
        "The same under the lock of a claim: commits on SQLite, attempts, prunings.",
        (
            "tests/contract/test_transaction.py::test_a_member_whose_partition_transactions_have_read_on_moves_no_position",
        ),
        (Edit(f"{STORE}/claims.py", _LOCKED, "c.c.partition_id.in_(sorted(epochs)))\n"),),
    ),
    Mutation(
        "taken-without-a-new-epoch",
        "A member takes a partition over without raising the epoch of its claim.",
        ("tests/contract/test_groups.py::test_epochs_rise_with_every_new_owner",),
        (
            Edit(
                f"{STORE}/claims.py",
                "taken = [Claim(row.partition_id, row.epoch + 1) for row in free]",
                "taken = [Claim(row.partition_id, row.epoch) for row in free]",
            ),
        ),
    ),
    Mutation(
        "stale-assignment",
        "A member that has lost a partition and got it again goes on with what it had read before.",
        ("tests/unit/test_reconcile.py",),
        (
            Edit(
                "src/sqlmq/model/assignment.py",
                "lost = tuple(id_ for id_, epoch in held.items() if recorded.get(id_) != epoch)",
                "lost = tuple(id_ for id_, epoch in held.items() if recorded.get(id_) is None)",
            ),
        ),
    ),
    Mutation(
        "claims-locked-backwards",
        "An operator's change locks claims in the reverse of the common order.",
        ("tests/databases/test_lock_order.py",),
        (
            Edit(
                f"{STORE}/claims.py",
                "        .order_by(c.c.partition_id)\n        .with_for_update(key_share=True)\n    )\n"
                "    return list(rows.scalars())\n",
                "        .order_by(c.c.partition_id.desc())\n        .with_for_update(key_share=True)\n    )\n"
                "    return list(rows.scalars())\n",
            ),
        ),
    ),
    Mutation(
        "lease-trusted-too-long",
        "A member trusts its lease for a second longer than the database does.",
        ("tests/unit/test_timing.py",),
        (
            Edit(
                "src/sqlmq/model/timing.py",
                "return heartbeat_began + lease_seconds * 0.9",
                "return heartbeat_began + lease_seconds + 1.0",
            ),
        ),
    ),
    Mutation(
        "lease-from-the-answer",
        "A lease counts from the moment at which a heartbeat was acknowledged, not from when it was sent.",
        ("tests/unit/test_heartbeat.py",),
        (
            Edit(
                "src/sqlmq/background/heartbeat.py",
                "member.heartbeat_acknowledged(sent_at)",
                "member.heartbeat_acknowledged(self._clock.monotonic())",
            ),
        ),
    ),
    Mutation(
        "lease-not-asked-after-a-fetch",
        "Messages are delivered though the lease has ended while they were fetched.",
        ("tests/unit/test_clock.py::test_nothing_is_delivered_whose_lease_has_ended_while_it_was_fetched",),
        (
            Edit(
                "src/sqlmq/consumer/core.py",
                "        return self.coordinator.is_lease_valid()\n",
                "        return True\n",
            ),
        ),
    ),
    Mutation(
        "committed-before-handled",
        "The position is committed when messages are delivered, not when they are done.",
        ("tests/contract/test_consume.py::test_a_crash_delivers_what_was_not_done_again",),
        (
            Edit(
                "src/sqlmq/consumer/core.py",
                'if self.ack == "on_delivery" and messages:',
                "if messages:",
            ),
        ),
    ),
    Mutation(
        "reset-does-not-fence",
        "A group is moved by force, and the commits of its members are still accepted.",
        ("tests/contract/test_replay.py::test_a_commit_that_is_sent_again_after_a_reset_is_not_written",),
        (
            Edit(
                f"{STORE}/claims.py",
                ".values(member_id=null(), epoch=c.c.epoch + 1, changed_at=dialect.now())",
                ".values(changed_at=dialect.now())",
            ),
        ),
    ),
    Mutation(
        "seek-does-not-fence",
        "A commit from before a seek, sent again after it, is accepted.",
        ("tests/contract/test_replay.py::test_a_commit_that_is_sent_again_after_a_seek_is_not_written",),
        (
            Edit(
                f"{STORE}/claims.py",
                "renewed = Claim(claim.partition_id, claim.epoch + 1)",
                "renewed = Claim(claim.partition_id, claim.epoch)",
            ),
        ),
    ),
    Mutation(
        "newest-position-pruned",
        "When old positions are deleted, the newest one goes with them.",
        ("tests/contract/test_consume.py::test_old_positions_are_removed",),
        (
            Edit(
                f"{STORE}/offsets.py",
                'o.c.committed_offset < bindparam("end")',
                'o.c.committed_offset <= bindparam("end")',
            ),
        ),
    ),
    Mutation(
        "partition-opened-early",
        "A new partition of a grown topic may be read one message before its parent is done.",
        ("tests/contract/test_growth.py::test_a_group_reads_the_new_partitions_when_it_is_done_with_the_old_one",),
        (
            Edit(
                f"{STORE}/topics.py",
                '"barrier_offset": ends[before]}',
                '"barrier_offset": max(0, ends[before] - 1)}',
            ),
        ),
    ),
    Mutation(
        "effects-apart",
        "A transaction that is rolled back keeps its effects.",
        ("tests/contract/test_transaction.py::test_an_exception_undoes_both_and_the_messages_come_again",),
        (
            Edit(
                "src/sqlmq/consumer/transaction_scope.py",
                "        try:\n            if self._owner is None and self._root is not None:\n",
                "        try:\n"
                "            if self.taken is not None and self._root is not None and self._root.is_active:\n"
                "                self._root.commit()\n"
                "            if self._owner is None and self._root is not None:\n",
            ),
        ),
    ),
    Mutation(
        "moved-by-rollback",
        "A transaction that is rolled back still moves the position.",
        ("tests/contract/test_transaction.py::test_an_exception_undoes_both_and_the_messages_come_again",),
        (
            Edit(
                "src/sqlmq/consumer/transaction_scope.py",
                "                self._given.rollback()\n",
                "                self._given.rollback()\n"
                "            if self.taken is not None:\n"
                "                to = transaction.Commit(self.taken.claim.partition_id, self.taken.end)\n"
                "                with self._database.connect() as conn:\n"
                "                    self._database.dialect.begin(conn)\n"
                "                    transaction.offsets.insert_all(conn, self._database.dialect, self._group, [to])\n"
                "                    conn.commit()\n",
            ),
        ),
    ),
    Mutation(
        "position-before-the-lock",
        "A transaction reads the position before it has locked its partition, and does not compare it at the end.",
        (
            "tests/contract/test_transaction.py::test_many_consumers_at_once_have_each_effect_once_and_in_order",
            "tests/contract/test_transaction.py::test_a_position_that_has_moved_after_all_is_not_moved_again",
        ),
        (
            Edit(
                f"{OPERATIONS}/transaction.py",
                "    claim, held = claims.lock_free_claim(\n",
                "    before = offsets.positions(conn, dialect, group, topic.partition_ids)\n"
                "    claim, held = claims.lock_free_claim(\n",
            ),
            Edit(
                f"{OPERATIONS}/transaction.py",
                "    start = offsets.positions(conn, dialect, group, [claim.partition_id]).get(claim.partition_id)\n",
                "    start = before.get(claim.partition_id)\n",
            ),
            Edit(f"{STORE}/claims.py", "        _position(dialect) == start,\n", ""),
        ),
    ),
    Mutation(
        "position-before-the-effects-postgres",
        "A handler's transaction commits the position by itself, before the effects.",
        ("tests/contract/test_run_in_transactions.py::test_the_position_is_part_of_the_transaction_of_the_effects",),
        (
            Edit(
                "src/sqlmq/consumer/worker/executor.py",
                "            scope.finish(execution.settle)\n",
                "            database = self._context.database\n"
                "            if database.dialect.one_writer:\n"
                "                scope.finish(execution.settle)\n"
                "            else:\n"
                "                database.write(lambda conn, _dialect: execution.settle(conn))\n"
                "                scope.finish()\n",
            ),
        ),
    ),
    Mutation(
        "position-after-the-effects",
        "A handler's transaction does not commit the position: it is committed later, with others.",
        ("tests/contract/test_run_in_transactions.py::test_the_position_is_part_of_the_transaction_of_the_effects",),
        (
            Edit(
                "src/sqlmq/consumer/worker/executor.py",
                "            scope.finish(execution.settle)\n",
                "            scope.finish()\n",
            ),
        ),
    ),
    Mutation(
        "position-after-the-effects-asyncio",
        "A coroutine's transaction does not commit the position: it is committed later, with others.",
        ("tests/contract/test_run_in_transactions.py::test_the_position_is_part_of_the_transaction_of_the_effects",),
        (Edit("src/sqlmq/aio/executor.py", "partial(scope.finish, execution.settle)", "scope.finish"),),
    ),
    Mutation(
        "no-position-in-async-transactions",
        "The block of a transaction for asyncio commits the effects without the position.",
        ("tests/contract/test_transaction.py::test_effects_and_position_are_committed_together",),
        (
            Edit(
                "src/sqlmq/aio/transaction.py",
                "                await _run(target, lambda _: block.finish())\n",
                "",
            ),
        ),
    ),
    Mutation(
        "ended-transaction-unnoticed-postgres",
        "A block whose transaction was ended inside moves the position in another transaction.",
        ("tests/contract/test_transaction.py::test_a_transaction_ended_inside_the_block_moves_no_position",),
        (
            Edit(
                f"{POSTGRES}/dialect.py",
                "        return literal_column(_TRANSACTION_ID, String) == token\n",
                "        return true()\n",
            ),
        ),
    ),
    Mutation(
        "ended-transaction-unnoticed-sqlite",
        "A block whose transaction was ended inside moves the position in another transaction.",
        (
            "tests/contract/test_transaction.py::test_a_transaction_ended_inside_the_block_moves_no_position",
            "tests/contract/test_transaction.py::test_a_transaction_that_sqlite_itself_rolled_back_moves_no_position",
        ),
        (
            Edit(
                f"{SQLITE}/dialect.py",
                '            if "no such savepoint" in str(error.orig):\n                return False\n',
                '            if "no such savepoint" in str(error.orig):\n                return True\n',
            ),
        ),
    ),
)
