-- Messages without a key in one function: what takes a partition that is free, and sqlmq_append after it, locked it twice.

DROP FUNCTION {schema}sqlmq_free_partition(bigint[]);

-- For messages that any of the partitions wanted will do for, all of one topic: goes to the first of them that nobody
-- else has locked, so that producers do not wait for each other's commits; if all are locked it waits for the first.
-- Returns the partition and the offset of the first message; nothing, and appends nothing, if the topic has other than
-- the partitions known.
CREATE FUNCTION {schema}sqlmq_append_anywhere(wanted bigint[], vals bytea[], headers text[], known integer) RETURNS bigint[]
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off{search_path} AS $sqlmq$
DECLARE
    free bigint;
    oldest bigint;
    present integer;
    base bigint;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM {schema}sqlmq_raise_isolation();
    END IF;

    -- Locked until the transaction ends, and not changed, as by sqlmq_next_offset. The first one by itself, because it
    -- is free nearly always, and to look for it among others takes longer.
    SELECT p.id, p.start_offset, p.topic_partitions INTO free, oldest, present FROM {schema}sqlmq_partition p
    WHERE p.id = wanted[1] AND p.topic_id IS NOT NULL
    FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        SELECT p.id, p.start_offset, p.topic_partitions INTO free, oldest, present
        FROM unnest(wanted) WITH ORDINALITY AS w (id, place)
        JOIN {schema}sqlmq_partition p ON p.id = w.id AND p.topic_id IS NOT NULL
        ORDER BY w.place
        LIMIT 1
        FOR NO KEY UPDATE OF p SKIP LOCKED;
    END IF;
    IF NOT FOUND THEN
        SELECT p.id, p.start_offset, p.topic_partitions INTO free, oldest, present FROM {schema}sqlmq_partition p
        WHERE p.id = wanted[1] AND p.topic_id IS NOT NULL
        FOR NO KEY UPDATE;
    END IF;
    IF NOT FOUND THEN
        PERFORM {schema}sqlmq_raise_deleted(wanted[1:1], NULL);
    END IF;
    IF present <> known THEN
        RETURN '{}';
    END IF;

    -- A statement of its own, which sees what was committed before the lock was there.
    SELECT m.msg_offset + 1 INTO base FROM {schema}sqlmq_message m
    WHERE m.partition_id = free AND m.msg_offset >= oldest
    ORDER BY m.msg_offset DESC LIMIT 1;
    base := coalesce(base, oldest);

    INSERT INTO {schema}sqlmq_message (partition_id, msg_offset, value, headers)
    SELECT free, generate_series(base, base + cardinality(vals) - 1), unnest(vals), unnest(headers)::jsonb;
    RETURN ARRAY[free, base];
END
$sqlmq$;
