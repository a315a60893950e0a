-- How messages get into the log. Both functions work in READ COMMITTED only, where each statement has a snapshot of its
-- own: the newest offset has to be looked up after the partition's row is locked, in a later statement.

-- What the library calls: one array element per message, in the order of their partitions, and for each partition how
-- many messages are its own. Gives the offset of the first message of each partition. Headers are JSON texts; an array
-- that is NULL stands for NULLs.
CREATE OR REPLACE FUNCTION {schema}sqlmq_append(partition_ids bigint[], counts integer[], keys bytea[], vals bytea[], headers text[])
RETURNS bigint[] LANGUAGE plpgsql{search_path} AS $sqlmq$
DECLARE
    bases bigint[] := ARRAY[]::bigint[];
    base bigint;
    locked bigint;
    first integer := 1;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'messages can''t be numbered in a % transaction', upper(current_setting('transaction_isolation'))
            USING ERRCODE = 'MQ001', HINT = 'Produce in READ COMMITTED.';
    END IF;

    -- The rows stay locked until the transaction ends, so offsets become visible in their order; locked in order of id,
    -- so that two producers can't wait for each other. They are not changed: a row that is rewritten for each append
    -- slows to a crawl while somebody holds an old snapshot.
    PERFORM FROM {schema}sqlmq_partition p
    WHERE p.id = ANY (partition_ids) AND p.topic_id IS NOT NULL
    ORDER BY p.id
    FOR NO KEY UPDATE;
    GET DIAGNOSTICS locked = ROW_COUNT;
    IF locked <> cardinality(partition_ids) THEN
        RAISE EXCEPTION 'the topic was deleted' USING ERRCODE = 'MQ002';
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

-- What anybody calls who writes SQL, triggers included:
--     SELECT sqlmq_produce('orders', 'customer 7', 'paid');
--     SELECT * FROM sqlmq_produce('orders', NULL::bytea, '\x00ff'::bytea, jsonb_build_object('type', 'paid'), 2);
-- The key decides the partition as it does in Python; without one it is any; or it is named.
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

    message_offset := ({schema}sqlmq_append(
        ARRAY[found_partition], ARRAY[1], ARRAY[key], ARRAY[value], ARRAY[nullif(headers, '{}')::text]
    ))[1];
END
$sqlmq$;

-- The same for text, which is stored in UTF-8.
CREATE OR REPLACE FUNCTION {schema}sqlmq_produce(
    topic text,
    key text,
    value text,
    headers jsonb DEFAULT NULL,
    partition integer DEFAULT NULL,
    OUT partition_number integer,
    OUT message_offset bigint
) LANGUAGE sql{search_path} AS $sqlmq$
    SELECT * FROM {schema}sqlmq_produce(topic, convert_to(key, 'UTF8'), convert_to(value, 'UTF8'), headers, partition)
$sqlmq$;
