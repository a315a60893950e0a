-- Appending with less work for each message. What is inserted comes from set-returning functions side by side in the
-- select list: a function in FROM keeps its rows first, in a file if they are large. Plans are generic, because for each
-- short array the planner would make a new one, and by index even if the tables were empty when it looked.

-- Locks a partition and tells the offset that its next message gets.
CREATE FUNCTION {schema}sqlmq_next_offset(wanted bigint) RETURNS bigint
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off{search_path} AS $sqlmq$
DECLARE
    oldest bigint;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM {schema}sqlmq_raise_isolation();
    END IF;

    -- The row stays locked until the transaction ends, so offsets become visible in their order. It is not changed: a
    -- row that is rewritten for each append slows to a crawl while somebody holds an old snapshot.
    SELECT p.start_offset INTO oldest FROM {schema}sqlmq_partition p
    WHERE p.id = wanted AND p.topic_id IS NOT NULL
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM {schema}sqlmq_raise_deleted(ARRAY[wanted], NULL);
    END IF;

    -- A statement of its own, which sees what was committed before the lock was there. Searched from start_offset on:
    -- index entries below it may be dead, and there may be very many.
    RETURN coalesce((
        SELECT m.msg_offset + 1 FROM {schema}sqlmq_message m
        WHERE m.partition_id = wanted AND m.msg_offset >= oldest
        ORDER BY m.msg_offset DESC LIMIT 1
    ), oldest);
END
$sqlmq$;

-- The same for several, whose ids ascend: they are locked in one order everywhere, so that two producers can't wait for
-- each other.
CREATE FUNCTION {schema}sqlmq_next_offsets(partition_ids bigint[]) RETURNS bigint[]
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off{search_path} AS $sqlmq$
DECLARE
    locked bigint[];
    oldest bigint[];
BEGIN
    IF cardinality(partition_ids) = 1 THEN
        RETURN ARRAY[{schema}sqlmq_next_offset(partition_ids[1])];
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM {schema}sqlmq_raise_isolation();
    END IF;

    SELECT array_agg(p.id), array_agg(p.start_offset) INTO locked, oldest FROM (
        SELECT p.id, p.start_offset
        FROM unnest(partition_ids) AS w (id) JOIN {schema}sqlmq_partition p ON p.id = w.id AND p.topic_id IS NOT NULL
        ORDER BY p.id
        FOR NO KEY UPDATE OF p
    ) p;
    IF locked IS DISTINCT FROM partition_ids THEN
        PERFORM {schema}sqlmq_raise_deleted(partition_ids, locked);
    END IF;

    RETURN ARRAY(
        SELECT coalesce((
            SELECT m.msg_offset + 1 FROM {schema}sqlmq_message m
            WHERE m.partition_id = p.id AND m.msg_offset >= p.oldest
            ORDER BY m.msg_offset DESC LIMIT 1
        ), p.oldest)
        FROM unnest(locked, oldest) AS p (id, oldest)
    );
END
$sqlmq$;

CREATE FUNCTION {schema}sqlmq_raise_isolation() RETURNS void LANGUAGE plpgsql AS $sqlmq$
BEGIN
    RAISE EXCEPTION 'messages can''t be numbered in a % transaction', upper(current_setting('transaction_isolation'))
        USING ERRCODE = 'MQ001', HINT = 'Call sqlmq_publish, or produce in READ COMMITTED.';
END
$sqlmq$;

-- As before, but for what it says of ids that do not ascend.
CREATE OR REPLACE FUNCTION {schema}sqlmq_raise_deleted(wanted bigint[], present bigint[]) RETURNS void
LANGUAGE plpgsql{search_path} AS $sqlmq$
DECLARE
    gone bigint := (SELECT w.id FROM unnest(wanted) AS w (id) WHERE w.id <> ALL (coalesce(present, '{}')) ORDER BY w.id LIMIT 1);
BEGIN
    IF gone IS NULL THEN
        RAISE EXCEPTION 'the ids of partitions must ascend' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RAISE EXCEPTION 'the topic of partition id % was deleted', gone USING ERRCODE = 'MQ002';
END
$sqlmq$;

-- Messages lie in order of their partitions: the first counts[1] are for partition_ids[1], and so on. Returns the offset
-- of the first in each.
CREATE OR REPLACE FUNCTION {schema}sqlmq_append(
    partition_ids bigint[], counts integer[], keys bytea[], vals bytea[], headers text[]
) RETURNS bigint[] LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan{search_path} AS $sqlmq$
DECLARE
    bases bigint[] := {schema}sqlmq_next_offsets(partition_ids);
BEGIN
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
    RETURN bases;
END
$sqlmq$;

-- For messages that any partition will do for: locks the first of those wanted that nobody else has locked, so that
-- producers do not wait for each other's commits. If all are locked it is the first, for whose lock sqlmq_append waits.
CREATE FUNCTION {schema}sqlmq_free_partition(wanted bigint[]) RETURNS bigint
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan{search_path} AS $sqlmq$
DECLARE
    free bigint;
BEGIN
    SELECT p.id INTO free
    FROM unnest(wanted) WITH ORDINALITY AS w (id, place)
    JOIN {schema}sqlmq_partition p ON p.id = w.id AND p.topic_id IS NOT NULL
    ORDER BY w.place
    LIMIT 1
    FOR NO KEY UPDATE OF p SKIP LOCKED;
    RETURN coalesce(free, wanted[1]);
END
$sqlmq$;

-- As sqlmq_append, for one message.
CREATE FUNCTION {schema}sqlmq_append_one(partition_id bigint, key bytea, value bytea, headers text) RETURNS bigint
LANGUAGE plpgsql{search_path} AS $sqlmq$
DECLARE
    base bigint := {schema}sqlmq_next_offset(partition_id);
BEGIN
    INSERT INTO {schema}sqlmq_message (partition_id, msg_offset, key, value, headers)
    VALUES (partition_id, base, key, value, headers::jsonb);
    RETURN base;
END
$sqlmq$;

-- As before. Above READ COMMITTED the newest offset can't be seen, so there the messages are staged, to be moved into
-- the log once they are committed, and NULL is returned. That takes no lock, and reads nothing that another such
-- transaction writes.
CREATE OR REPLACE FUNCTION {schema}sqlmq_publish(
    partition_ids bigint[], counts integer[], keys bytea[], vals bytea[], headers text[]
) RETURNS bigint[] LANGUAGE plpgsql{search_path} AS $sqlmq$
DECLARE
    present bigint[];
BEGIN
    IF current_setting('transaction_isolation') = 'read committed' THEN
        RETURN {schema}sqlmq_append(partition_ids, counts, keys, vals, headers);
    END IF;

    SELECT array_agg(p.id) INTO present FROM {schema}sqlmq_partition p
    WHERE p.id = ANY (partition_ids) AND p.topic_id IS NOT NULL;
    IF present IS NULL OR NOT present @> partition_ids THEN
        PERFORM {schema}sqlmq_raise_deleted(partition_ids, present);
    END IF;

    INSERT INTO {schema}sqlmq_staged (partition_id, key, value, headers)
    SELECT
        unnest(ARRAY(SELECT p.id FROM (
            SELECT p.id, generate_series(1, p.count) FROM unnest(partition_ids, counts) AS p (id, count)
        ) p)),
        unnest(keys),
        unnest(vals),
        unnest(headers)::jsonb;
    RETURN NULL;
END
$sqlmq$;

-- The same for one message.
CREATE FUNCTION {schema}sqlmq_publish_one(partition_id bigint, key bytea, value bytea, headers text) RETURNS bigint
LANGUAGE plpgsql{search_path} AS $sqlmq$
BEGIN
    IF current_setting('transaction_isolation') = 'read committed' THEN
        RETURN {schema}sqlmq_append_one(partition_id, key, value, headers);
    END IF;
    RETURN ({schema}sqlmq_publish(ARRAY[partition_id], ARRAY[1], ARRAY[key], ARRAY[value], ARRAY[headers]))[1];
END
$sqlmq$;

-- As before, through sqlmq_publish_one; above READ COMMITTED, message_offset is NULL.
CREATE OR REPLACE FUNCTION {schema}sqlmq_produce(
    topic text,
    key bytea,
    value bytea,
    headers jsonb DEFAULT NULL,
    partition integer DEFAULT NULL,
    OUT partition_number integer,
    OUT message_offset bigint
) LANGUAGE plpgsql{search_path} AS $sqlmq$
DECLARE
    found_topic record;
    found_partition bigint;
BEGIN
    IF value IS NULL THEN
        RAISE EXCEPTION 'a message''s value can''t be NULL' USING ERRCODE = 'null_value_not_allowed',
            HINT = 'Produce an empty value, or none.';
    END IF;
    IF jsonb_typeof(headers) <> 'object'
        OR EXISTS (SELECT FROM jsonb_each(headers) h WHERE jsonb_typeof(h.value) <> 'string')
    THEN
        RAISE EXCEPTION 'headers must be a JSON object whose values are strings' USING ERRCODE = 'invalid_parameter_value';
    END IF;

    SELECT t.id, t.partitions, t.partitioner INTO found_topic FROM {schema}sqlmq_topic t WHERE t.name = topic;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'topic % does not exist', quote_literal(topic) USING ERRCODE = 'MQ002',
            HINT = format('Create it with: sqlmq topics create %s', topic);
    END IF;
    partition_number := coalesce(
        partition,
        {schema}sqlmq_partition_for_key(found_topic.partitioner, key, found_topic.partitions),
        floor(random() * found_topic.partitions)::integer
    );
    SELECT p.id INTO found_partition FROM {schema}sqlmq_partition p
    WHERE p.topic_id = found_topic.id AND p.number = partition_number;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'topic % has the partitions 0 to %; there is no partition %',
            quote_literal(topic), found_topic.partitions - 1, partition_number
            USING ERRCODE = 'invalid_parameter_value';
    END IF;

    message_offset := {schema}sqlmq_publish_one(found_partition, key, value, nullif(headers, '{}')::text);
END
$sqlmq$;
