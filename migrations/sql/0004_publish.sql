-- How messages get into the log from a transaction that does other things, too.

-- As before, but for what it says about a partition whose topic is gone: which one it is.
CREATE OR REPLACE FUNCTION {schema}sqlmq_append(
    partition_ids bigint[], counts integer[], keys bytea[], vals bytea[], headers text[]
) RETURNS bigint[] LANGUAGE plpgsql{search_path} AS $sqlmq$
DECLARE
    bases bigint[] := ARRAY[]::bigint[];
    base bigint;
    locked bigint[];
    first integer := 1;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'messages can''t be numbered in a % transaction', upper(current_setting('transaction_isolation'))
            USING ERRCODE = 'MQ001', HINT = 'Call sqlmq_publish, or produce in READ COMMITTED.';
    END IF;

    -- The rows stay locked until the transaction ends, so offsets become visible in their order; locked in order of id,
    -- so that two producers can't wait for each other. They are not changed: a row that is rewritten for each append
    -- slows to a crawl while somebody holds an old snapshot.
    SELECT array_agg(p.id) INTO locked FROM (
        SELECT p.id FROM {schema}sqlmq_partition p
        WHERE p.id = ANY (partition_ids) AND p.topic_id IS NOT NULL
        ORDER BY p.id
        FOR NO KEY UPDATE
    ) p;
    IF locked IS NULL OR NOT locked @> partition_ids THEN
        PERFORM {schema}sqlmq_raise_deleted(partition_ids, locked);
    END IF;

    FOR i IN 1 .. cardinality(partition_ids) LOOP
        -- Searched from start_offset on: index entries below it may be dead, and there may be very many.
        SELECT greatest(p.start_offset, coalesce((
            SELECT m.msg_offset + 1 FROM {schema}sqlmq_message m
            WHERE m.partition_id = p.id AND m.msg_offset >= p.start_offset
            ORDER BY m.msg_offset DESC LIMIT 1
        ), 0))
        INTO STRICT base FROM {schema}sqlmq_partition p WHERE p.id = partition_ids[i];

        INSERT INTO {schema}sqlmq_message (partition_id, msg_offset, key, value, headers)
        SELECT partition_ids[i], base + m.place - 1, m.key, m.value, m.headers::jsonb
        FROM unnest(
            keys[first : first + counts[i] - 1],
            vals[first : first + counts[i] - 1],
            headers[first : first + counts[i] - 1]
        ) WITH ORDINALITY AS m (key, value, headers, place);

        bases := bases || base;
        first := first + counts[i];
    END LOOP;
    RETURN bases;
END
$sqlmq$;

-- Names, in the message, a partition among those wanted that is not among those present.
CREATE FUNCTION {schema}sqlmq_raise_deleted(wanted bigint[], present bigint[]) RETURNS void
LANGUAGE plpgsql{search_path} AS $sqlmq$
DECLARE
    gone bigint := (SELECT w.id FROM unnest(wanted) AS w (id) WHERE w.id <> ALL (coalesce(present, '{}')) ORDER BY w.id LIMIT 1);
BEGIN
    RAISE EXCEPTION 'the topic of partition id % was deleted', gone USING ERRCODE = 'MQ002';
END
$sqlmq$;

-- The same as sqlmq_append for a transaction of any isolation level. Above READ COMMITTED the newest offset can't be
-- seen, so there the messages are staged, to be moved into the log once they are committed, and NULL is returned.
-- That takes no lock, and reads nothing that another such transaction writes.
CREATE FUNCTION {schema}sqlmq_publish(
    partition_ids bigint[], counts integer[], keys bytea[], vals bytea[], headers text[]
) RETURNS bigint[] LANGUAGE plpgsql{search_path} AS $sqlmq$
DECLARE
    present bigint[];
    first integer := 1;
BEGIN
    IF current_setting('transaction_isolation') = 'read committed' THEN
        RETURN {schema}sqlmq_append(partition_ids, counts, keys, vals, headers);
    END IF;

    SELECT array_agg(p.id) INTO present FROM {schema}sqlmq_partition p
    WHERE p.id = ANY (partition_ids) AND p.topic_id IS NOT NULL;
    IF present IS NULL OR NOT present @> partition_ids THEN
        PERFORM {schema}sqlmq_raise_deleted(partition_ids, present);
    END IF;

    FOR i IN 1 .. cardinality(partition_ids) LOOP
        INSERT INTO {schema}sqlmq_staged (partition_id, key, value, headers)
        SELECT partition_ids[i], m.key, m.value, m.headers::jsonb
        FROM unnest(
            keys[first : first + counts[i] - 1],
            vals[first : first + counts[i] - 1],
            headers[first : first + counts[i] - 1]
        ) WITH ORDINALITY AS m (key, value, headers, place)
        ORDER BY m.place;
        first := first + counts[i];
    END LOOP;
    RETURN NULL;
END
$sqlmq$;

-- As before, but in a transaction of any isolation level: above READ COMMITTED, message_offset is NULL.
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

    message_offset := ({schema}sqlmq_publish(
        ARRAY[found_partition], ARRAY[1], ARRAY[key], ARRAY[value], ARRAY[nullif(headers, '{}')::text]
    ))[1];
END
$sqlmq$;
