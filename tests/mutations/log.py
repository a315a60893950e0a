"""Mutations of producing, numbering and reading: what is acknowledged is in the log, once, whole, dense and in order."""

from __future__ import annotations

from tests.mutations.mutation import OPERATIONS, POSTGRES, SQL, SQLITE, Edit, Mutation

MUTATIONS = (
    Mutation(
        "acknowledged-uncommitted",
        "Sometimes a message is acknowledged but its transaction is rolled back.",
        ("tests/contract/test_produce.py",),
        (
            Edit(
                "src/sqlmq/database/database.py",
                "        if self._appends_in_one_statement:\n",
                "        if not self._appends_in_one_statement:\n"
                "            if self.clock.random.random() < 0.1:\n"
                "                with self._exclusive(writing=True), self._connect(self._transactions) as conn:\n"
                "                    self.dialect.begin(conn)\n"
                "                    return operation(conn, self.dialect, *args, **kwargs)\n"
                "        else:\n",
            ),
            Edit(
                "src/sqlmq/database/database.py",
                "                    result = operation(append_connection.connection, self.dialect, *args, **kwargs)\n",
                "                    driven = append_connection.driven\n"
                "                    is_lost = self.clock.random.random() < 0.1\n"
                '                    driven.execute("BEGIN" if is_lost else "SELECT 1")\n'
                "                    result = operation(append_connection.connection, self.dialect, *args, **kwargs)\n"
                '                    driven.execute("ROLLBACK" if is_lost else "SELECT 1")\n',
            ),
        ),
    ),
    Mutation(
        "numbered-without-lock-postgres",
        "Offsets are looked up while another transaction may append to the partition.",
        ("tests/databases/test_lock_order.py::test_an_append_waits_for_the_transaction_that_has_locked_its_partition",),
        (
            Edit(
                f"{SQL}/append.sql",
                "    WHERE p.id = sqlmq_append_one.partition_id AND p.topic_id IS NOT NULL\n    FOR NO KEY UPDATE;\n",
                "    WHERE p.id = sqlmq_append_one.partition_id AND p.topic_id IS NOT NULL;\n",
            ),
            Edit(
                f"{SQL}/append.sql",
                "    WHERE p.id = wanted AND p.topic_id IS NOT NULL\n    FOR NO KEY UPDATE;\n",
                "    WHERE p.id = wanted AND p.topic_id IS NOT NULL;\n",
            ),
        ),
    ),
    Mutation(
        "deferred-on-sqlite",
        "A transaction of the library becomes the writer only with its first write.",
        ("tests/databases/test_sqlite.py::test_a_writing_transaction_reads_nothing_before_it_is_the_writer",),
        (Edit(f"{SQLITE}/dialect.py", '("BEGIN IMMEDIATE")', '("BEGIN")'),),
    ),
    Mutation(
        "number-left-out-postgres",
        "Sometimes an offset is skipped, as by a sequence after a rollback.",
        ("tests/contract/test_consume.py::test_no_partition_waits_until_another_is_read_to_the_end",),
        (
            Edit(
                f"{SQL}/append.sql",
                "        base := coalesce(base, oldest);\n\n"
                "        INSERT INTO {schema}sqlmq_message (partition_id, msg_offset, key, value, headers)\n",
                "        base := coalesce(base, oldest);\n        base := base + (base % 10 = 9)::integer;\n\n"
                "        INSERT INTO {schema}sqlmq_message (partition_id, msg_offset, key, value, headers)\n",
            ),
        ),
    ),
    Mutation(
        "number-left-out-sqlite",
        "Sometimes an offset is skipped, as by a sequence after a rollback.",
        ("tests/contract/test_consume.py::test_commits_are_batched_and_flushed_by_close",),
        (
            Edit(
                f"{SQLITE}/dialect.py",
                "            ((base,),) = cursor.fetchall()\n            places",
                "            base = cursor.fetchall()[0][0]\n            base += base % 10 == 9\n            places",
            ),
        ),
    ),
    Mutation(
        "hole-passed-over",
        "A reader that finds an offset missing goes on behind it.",
        ("tests/unit/test_partition.py",),
        (
            Edit(
                "src/sqlmq/consumer/partition.py",
                "        check_dense(self.topic, self.partition, records.offsets(), self.read_position)\n",
                "",
            ),
        ),
    ),
    Mutation(
        "value-cut",
        "A value of more than 65,535 bytes is truncated on its way into the log.",
        ("tests/contract/test_produce.py::test_more_bytes_than_one_statement_takes_are_one_transaction",),
        (
            Edit(
                "src/sqlmq/model/message.py",
                "values = [message._value for message in messages]",
                "values = [message._value[:65_535] for message in messages]",
            ),
        ),
    ),
    Mutation(
        "sent-again",
        "A batch for three or more partitions is sent twice.",
        ("tests/contract/test_produce.py::test_results_of_many_are_in_the_order_of_the_messages",),
        (
            Edit(
                "src/sqlmq/producer/core.py",
                "                results = database.append(produce.append, batch)\n",
                "                if len(batch.runs) > 2:\n"
                "                    database.append(produce.append, batch)\n"
                "                results = database.append(produce.append, batch)\n",
            ),
        ),
    ),
    Mutation(
        "answerless-commit-sent-again",
        "A transaction whose COMMIT got no answer is run again, though it may have been committed.",
        (
            "tests/databases/test_postgresql.py::test_a_producer_says_that_it_does_not_know_when_the_answer_to_its_commit_is_lost",
        ),
        (
            Edit(
                "src/sqlmq/database/database.py",
                "if isinstance(error, OutcomeUnknownError) or not isinstance(error, SqlmqError)",
                "if not isinstance(error, SqlmqError)",
            ),
        ),
    ),
    Mutation(
        "coalesced-backwards",
        "Calls that share a transaction are sent in reverse order.",
        ("tests/unit/test_batcher.py",),
        (
            Edit(
                "src/sqlmq/producer/batcher.py",
                "batch.results = self._appender.append_batch(routed)",
                "batch.results = self._appender.append_batch(routed[::-1])[::-1]",
            ),
        ),
    ),
    Mutation(
        "batch-in-pieces",
        "A batch of more than ten messages is written in several transactions.",
        ("tests/contract/test_produce.py::test_many_that_the_database_refuses_half_way_are_all_refused",),
        (
            Edit(
                "src/sqlmq/producer/core.py",
                "            return []\n        topic = self.current_topic()\n",
                "            return []\n"
                "        if (count := len(contents.values)) > 10:\n"
                "            first, rest = contents.between(0, count // 2), contents.between(count // 2, count)\n"
                "            return self._append_contents(first, partition) + self._append_contents(rest, partition)\n"
                "        topic = self.current_topic()\n",
            ),
        ),
    ),
    Mutation(
        "locked-in-order-of-messages",
        "Partitions are locked in the order of the messages, so two transactions can wait for each other.",
        ("tests/databases/test_lock_order.py",),
        (
            Edit(
                f"{SQL}/append.sql",
                "            FROM unnest(partition_ids) AS w (id) JOIN {schema}sqlmq_partition p "
                "ON p.id = w.id AND p.topic_id IS NOT NULL\n            ORDER BY p.id\n",
                "            FROM unnest(partition_ids) WITH ORDINALITY AS w (id, place) JOIN {schema}sqlmq_partition p "
                "ON p.id = w.id AND p.topic_id IS NOT NULL\n            ORDER BY w.place\n",
            ),
            Edit(
                f"{OPERATIONS}/produce.py",
                "    order = sorted(range(len(ids)), key=ids.__getitem__)\n    targets",
                "    order = sorted(range(len(ids)), key=lambda place: ids.index(ids[place]))\n    targets",
            ),
            Edit(
                f"{OPERATIONS}/produce.py",
                "counts[id_]) for id_ in sorted(counts)]",
                "counts[id_]) for id_ in counts]",
            ),
        ),
    ),
    Mutation(
        "locked-backwards",
        "Appends to several partitions lock them in the reverse of the common order.",
        ("tests/databases/test_lock_order.py",),
        (
            Edit(
                f"{SQL}/append.sql",
                "    SELECT array_agg(p.id), array_agg(p.start_offset), array_agg(p.topic_partitions) INTO",
                "    SELECT array_agg(p.id ORDER BY p.id), array_agg(p.start_offset ORDER BY p.id),"
                " array_agg(p.topic_partitions ORDER BY p.id) INTO",
            ),
            Edit(
                f"{SQL}/append.sql",
                "            ORDER BY p.id\n            FOR NO KEY UPDATE OF p\n",
                "            ORDER BY p.id DESC\n            FOR NO KEY UPDATE OF p\n",
            ),
        ),
    ),
    Mutation(
        "numbered-above-read-committed",
        "A message of a transaction above READ COMMITTED is numbered by an old snapshot instead of staged.",
        ("tests/contract/test_isolation.py::test_a_message_is_moved_into_the_log_after_its_commit",),
        (
            Edit(
                f"{SQL}/publish.sql",
                "    IF current_setting('transaction_isolation') = 'read committed' THEN\n"
                "        base := {schema}sqlmq_append_one(",
                "    IF true THEN\n        base := {schema}sqlmq_append_one(",
            ),
            Edit(
                f"{SQL}/append.sql",
                "    IF current_setting('transaction_isolation') <> 'read committed' THEN\n"
                "        PERFORM {schema}sqlmq_raise_isolation();\n    END IF;\n\n"
                "    -- Locked until the transaction ends, and not changed, as in sqlmq_next_offset.\n",
                "    -- Locked until the transaction ends, and not changed, as in sqlmq_next_offset.\n",
            ),
        ),
    ),
    Mutation(
        "growth-unnoticed-postgres",
        "A producer that does not know that its topic has grown goes on with the old partition of a key.",
        ("tests/contract/test_growth.py::test_producers_that_know_nothing_of_it_go_to_the_new_partitions",),
        (
            Edit(
                f"{SQL}/append.sql",
                "    IF present <> known THEN\n        base := -1;\n    ELSE\n"
                "        -- A separate statement, which sees what was committed before the lock was taken.\n        SELECT",
                "    IF false THEN\n        base := -1;\n    ELSE\n"
                "        -- A separate statement, which sees what was committed before the lock was taken.\n        SELECT",
            ),
        ),
    ),
    Mutation(
        "growth-unnoticed-sqlite",
        "A producer that does not know that its topic has grown goes on with the old partition of a key.",
        ("tests/contract/test_growth.py::test_producers_that_know_nothing_of_it_go_to_the_new_partitions",),
        (
            Edit(
                f"{SQLITE}/dialect.py",
                "            if locked[0][0] != part.topic_partitions:\n                raise TopicGrownError\n",
                "",
            ),
        ),
    ),
    Mutation(
        "hash-by-abs",
        "A key goes to the partition of the absolute hash, another one than in other languages.",
        ("tests/unit/test_partitioner.py",),
        (
            Edit(
                "src/sqlmq/model/partitioner.py",
                "return (murmur2(key) & _INT32_MASK) % partitions",
                "return abs(murmur2(key)) % partitions",
            ),
        ),
    ),
    Mutation(
        "hash-by-abs-postgres",
        "SQL sends a key to another partition than Python.",
        ("tests/databases/test_postgresql.py::test_sql_gives_the_published_partitions",),
        (
            Edit(
                f"{SQL}/partitioners.sql",
                "mod(value & 2147483647, partitions)",
                "mod(abs(CASE WHEN value > 2147483647 THEN value - 4294967296 ELSE value END), partitions)",
            ),
        ),
    ),
    Mutation(
        "empty-key-placed-as-none",
        "A message with an empty key goes to any partition, if it is sent alone or in a transaction.",
        ("tests/contract/test_produce.py::test_an_empty_key_is_a_key",),
        (Edit(f"{OPERATIONS}/produce.py", "        elif message.key is not None:\n", "        elif message.key:\n"),),
    ),
    Mutation(
        "empty-key-placed-as-none-in-a-batch",
        "A message with an empty key goes to any partition, if it is sent with others.",
        ("tests/contract/test_produce.py::test_an_empty_key_is_a_key",),
        (
            Edit(
                f"{OPERATIONS}/produce.py",
                "[keyless_number if key is None else",
                "[keyless_number if not key else",
            ),
        ),
    ),
    Mutation(
        "empty-key-stored-as-none-postgres",
        "A message with an empty key arrives without a key.",
        ("tests/contract/test_produce.py::test_an_empty_key_is_a_key",),
        (
            Edit(
                f"{SQL}/append.sql",
                "    VALUES (partition_id, base, key, value, headers::jsonb);\n",
                "    VALUES (partition_id, base, nullif(key, ''), value, headers::jsonb);\n",
            ),
        ),
    ),
    Mutation(
        "empty-key-stored-as-none-sqlite",
        "A message with an empty key arrives without a key.",
        ("tests/contract/test_produce.py::test_no_key_and_an_empty_key_are_different",),
        (
            Edit(
                f"{SQLITE}/dialect.py",
                "columns = iter(contents.keys), iter(",
                "columns = iter([key or None for key in contents.keys]), iter(",
            ),
        ),
    ),
    Mutation(
        "handed-out-incompletely",
        "The last message of each partition in a poll of three or more is lost on its way to the application.",
        ("tests/contract/test_consume.py::test_each_partitions_messages_come_in_order",),
        (
            Edit(
                "src/sqlmq/consumer/buffer.py",
                "            messages.extend(delivered)\n",
                "            messages.extend(delivered if len(delivered) < 3 else delivered[:-1])\n",
            ),
        ),
    ),
    Mutation(
        "large-value-read-late-postgres",
        "A message at exactly the position to read is left out where values are large.",
        ("tests/contract/test_consume.py::test_a_message_longer_than_the_read_ahead_limit_arrives",),
        (
            Edit(
                f"{POSTGRES}/read.py",
                "                WHERE m.partition_id = r.id AND m.msg_offset >= r.position\n"
                "                ORDER BY m.msg_offset\n"
                "                LIMIT (SELECT greatest(1, %b::bigint / count(*)) FROM ready)\n"
                "            ) m\n            WHERE m.before",
                "                WHERE m.partition_id = r.id AND m.msg_offset > r.position\n"
                "                ORDER BY m.msg_offset\n"
                "                LIMIT (SELECT greatest(1, %b::bigint / count(*)) FROM ready)\n"
                "            ) m\n            WHERE m.before",
            ),
        ),
    ),
)
