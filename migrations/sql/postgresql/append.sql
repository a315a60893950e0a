-- Append to the log, in READ COMMITTED only: each statement there has a snapshot of its own, so the newest offset can be
-- read after the partition's row is locked.
--
-- The caller passes how many partitions of the topic it knows (`known`). If the topic has more by now, nothing is
-- written and the result says so: otherwise a key could continue in a partition that it has left. The result is a value
-- and not an error, because an error would end the application's transaction.
--
-- `home` is one of the tables that these functions belong to: a default that Postgres keeps by the table's oid. What stands
-- between `{follow}` and `{end}` uses their tables also after the schema was renamed (migrations/README.md).
--
-- For speed: rows come from set-returning functions side by side in the select list, because a function in FROM first
-- stores its rows, in a file if they are large. Plans are generic, because the planner would make a new one for each
-- short array, and use indexes even if the tables were empty when they were planned.

CREATE FUNCTION {schema}sqlmq_raise_isolation() RETURNS void LANGUAGE plpgsql AS $sqlmq$
BEGIN
    RAISE EXCEPTION 'messages can''t be numbered in a % transaction', upper(current_setting('transaction_isolation'))
        USING ERRCODE = 'MQ001', HINT = 'Call sqlmq_publish, or produce in READ COMMITTED.';
END
$sqlmq$;

-- Raises an error that names the first partition of `wanted` that is not in `present`.
CREATE FUNCTION {schema}sqlmq_raise_deleted(wanted bigint[], present bigint[]) RETURNS void
LANGUAGE plpgsql AS $sqlmq$
DECLARE
    gone bigint := (SELECT w.id FROM unnest(wanted) AS w (id) WHERE w.id <> ALL (coalesce(present, '{}')) ORDER BY w.id LIMIT 1);
BEGIN
    IF gone IS NULL THEN
        RAISE EXCEPTION 'the ids of partitions must ascend' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RAISE EXCEPTION 'the topic of partition id % was deleted', gone USING ERRCODE = 'MQ002';
END
$sqlmq$;

-- Locks a partition and returns the offset of its next message; -1 if its topic does not have `known` partitions.
CREATE FUNCTION {schema}sqlmq_next_offset(wanted bigint, known integer, home regclass DEFAULT {home}) RETURNS bigint
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $sqlmq$
DECLARE
    path text;
    oldest bigint;
    present integer;
    base bigint;
BEGIN
    {follow}
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM {schema}sqlmq_raise_isolation();
    END IF;

    -- The row stays locked until the transaction ends, so offsets become visible in their order. It is not changed: a
    -- row that is rewritten for each append slows to a crawl while another session holds an old snapshot.
    SELECT p.start_offset, p.topic_partitions INTO oldest, present FROM {schema}sqlmq_partition p
    WHERE p.id = wanted AND p.topic_id IS NOT NULL
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM {schema}sqlmq_raise_deleted(ARRAY[wanted], NULL);
    END IF;
    IF present <> known THEN
        base := -1;
    ELSE
        -- A separate statement, which sees what was committed before the lock was taken. It searches from start_offset on:
        -- index entries below it may be dead, and there may be very many.
        base := coalesce((
            SELECT m.msg_offset + 1 FROM {schema}sqlmq_message m
            WHERE m.partition_id = wanted AND m.msg_offset >= oldest
            ORDER BY m.msg_offset DESC LIMIT 1
        ), oldest);
    END IF;
    {end}
    RETURN base;
END
$sqlmq$;

-- The same for several partitions. Their ids must ascend: every producer locks in one order, so no two can deadlock.
-- Returns an empty array if one of the topics does not have `known` partitions.
CREATE FUNCTION {schema}sqlmq_next_offsets(partition_ids bigint[], known integer[], home regclass DEFAULT {home}) RETURNS bigint[]
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $sqlmq$
DECLARE
    path text;
    locked bigint[];
    oldest bigint[];
    present integer[];
    bases bigint[];
BEGIN
    {follow}
    IF cardinality(partition_ids) = 1 THEN
        bases := array_remove(ARRAY[{schema}sqlmq_next_offset(partition_ids[1], known[1])], -1::bigint);
    ELSE
        IF current_setting('transaction_isolation') <> 'read committed' THEN
            PERFORM {schema}sqlmq_raise_isolation();
        END IF;

        SELECT array_agg(p.id), array_agg(p.start_offset), array_agg(p.topic_partitions) INTO locked, oldest, present FROM (
            SELECT p.id, p.start_offset, p.topic_partitions
            FROM unnest(partition_ids) AS w (id) JOIN {schema}sqlmq_partition p ON p.id = w.id AND p.topic_id IS NOT NULL
            ORDER BY p.id
            FOR NO KEY UPDATE OF p
        ) p;
        IF locked IS DISTINCT FROM partition_ids THEN
            PERFORM {schema}sqlmq_raise_deleted(partition_ids, locked);
        END IF;
        IF present <> known THEN
            bases := '{}';
        ELSE
            bases := ARRAY(
                SELECT coalesce((
                    SELECT m.msg_offset + 1 FROM {schema}sqlmq_message m
                    WHERE m.partition_id = p.id AND m.msg_offset >= p.oldest
                    ORDER BY m.msg_offset DESC LIMIT 1
                ), p.oldest)
                FROM unnest(locked, oldest) AS p (id, oldest)
            );
        END IF;
    END IF;
    {end}
    RETURN bases;
END
$sqlmq$;

-- Appends a batch. Messages stand in the order of their partitions: the first counts[1] belong to partition_ids[1], and
-- so on. Returns the first offset in each partition; an empty array, and appends nothing, if one of the topics does not
-- have `known` partitions.
CREATE FUNCTION {schema}sqlmq_append(
    partition_ids bigint[], counts integer[], keys bytea[], vals bytea[], headers text[], known integer[],
    home regclass DEFAULT {home}
) RETURNS bigint[] LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $sqlmq$
DECLARE
    path text;
    bases bigint[];
BEGIN
    {follow}
    bases := {schema}sqlmq_next_offsets(partition_ids, known);
    IF cardinality(bases) > 0 THEN
        INSERT INTO {schema}sqlmq_message (partition_id, msg_offset, key, value, headers)
        SELECT
            unnest(ARRAY(SELECT p.id FROM (
                SELECT p.id, generate_series(1, p.count) FROM unnest(partition_ids, counts) AS p (id, count)
            ) p)),
            unnest(ARRAY(SELECT p.base + p.place FROM (
                SELECT p.base, generate_series(0, p.count - 1) AS place FROM unnest(bases, counts) AS p (base, count)
            ) p)),
            unnest(keys),
            unnest(vals),
            unnest(headers)::jsonb;
    END IF;
    {end}
    RETURN bases;
END
$sqlmq$;

-- Appends one message; returns -1, and appends nothing, if the topic does not have `known` partitions. It repeats
-- sqlmq_next_offset: calling it was a fifth of the server's work for a single message.
CREATE FUNCTION {schema}sqlmq_append_one(
    partition_id bigint, key bytea, value bytea, headers text, known integer, home regclass DEFAULT {home}
) RETURNS bigint LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $sqlmq$
DECLARE
    path text;
    oldest bigint;
    present integer;
    base bigint;
BEGIN
    {follow}
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM {schema}sqlmq_raise_isolation();
    END IF;

    -- Locked until the transaction ends, and not changed, as in sqlmq_next_offset.
    SELECT p.start_offset, p.topic_partitions INTO oldest, present FROM {schema}sqlmq_partition p
    WHERE p.id = sqlmq_append_one.partition_id AND p.topic_id IS NOT NULL
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM {schema}sqlmq_raise_deleted(ARRAY[partition_id], NULL);
    END IF;
    IF present <> known THEN
        base := -1;
    ELSE
        -- A separate statement, which sees what was committed before the lock was taken.
        SELECT m.msg_offset + 1 INTO base FROM {schema}sqlmq_message m
        WHERE m.partition_id = sqlmq_append_one.partition_id AND m.msg_offset >= oldest
        ORDER BY m.msg_offset DESC LIMIT 1;
        base := coalesce(base, oldest);

        INSERT INTO {schema}sqlmq_message (partition_id, msg_offset, key, value, headers)
        VALUES (partition_id, base, key, value, headers::jsonb);
    END IF;
    {end}
    RETURN base;
END
$sqlmq$;

-- Appends messages without a key to one of the `wanted` partitions of a topic: the first that no other transaction has
-- locked, so that producers do not wait for each other's commits. If all are locked, it waits for the first. Returns the
-- partition and the offset of the first message; an empty array, and appends nothing, if the topic does not have `known`
-- partitions.
CREATE FUNCTION {schema}sqlmq_append_to_any(
    wanted bigint[], vals bytea[], headers text[], known integer, home regclass DEFAULT {home}
) RETURNS bigint[] LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off AS $sqlmq$
DECLARE
    path text;
    free bigint;
    oldest bigint;
    present integer;
    base bigint;
    result bigint[];
BEGIN
    {follow}
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM {schema}sqlmq_raise_isolation();
    END IF;

    -- Locked until the transaction ends, and not changed, as in sqlmq_next_offset. The first one has a statement of its
    -- own, because it is nearly always free, and searching for it among the others takes longer.
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
        result := '{}';
    ELSE
        -- A separate statement, which sees what was committed before the lock was taken.
        SELECT m.msg_offset + 1 INTO base FROM {schema}sqlmq_message m
        WHERE m.partition_id = free AND m.msg_offset >= oldest
        ORDER BY m.msg_offset DESC LIMIT 1;
        base := coalesce(base, oldest);

        INSERT INTO {schema}sqlmq_message (partition_id, msg_offset, value, headers)
        SELECT free, generate_series(base, base + cardinality(vals) - 1), unnest(vals), unnest(headers)::jsonb;
        result := ARRAY[free, base];
    END IF;
    {end}
    RETURN result;
END
$sqlmq$;
