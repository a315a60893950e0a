-- As before, in one function: that it called sqlmq_next_offset was a fifth of what the server does for a single message.

CREATE OR REPLACE FUNCTION {schema}sqlmq_append_one(
    partition_id bigint, key bytea, value bytea, headers text, known integer
) RETURNS bigint LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off{search_path} AS $sqlmq$
DECLARE
    oldest bigint;
    present integer;
    base bigint;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM {schema}sqlmq_raise_isolation();
    END IF;

    -- Locked until the transaction ends, and not changed, as by sqlmq_next_offset.
    SELECT p.start_offset, p.topic_partitions INTO oldest, present FROM {schema}sqlmq_partition p
    WHERE p.id = sqlmq_append_one.partition_id AND p.topic_id IS NOT NULL
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM {schema}sqlmq_raise_deleted(ARRAY[partition_id], NULL);
    END IF;
    IF present <> known THEN
        RETURN -1;
    END IF;

    -- A statement of its own, which sees what was committed before the lock was there.
    SELECT m.msg_offset + 1 INTO base FROM {schema}sqlmq_message m
    WHERE m.partition_id = sqlmq_append_one.partition_id AND m.msg_offset >= oldest
    ORDER BY m.msg_offset DESC LIMIT 1;
    base := coalesce(base, oldest);

    INSERT INTO {schema}sqlmq_message (partition_id, msg_offset, key, value, headers)
    VALUES (partition_id, base, key, value, headers::jsonb);
    RETURN base;
END
$sqlmq$;
