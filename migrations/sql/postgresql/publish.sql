-- Publish in the caller's transaction, at any isolation level. Above READ COMMITTED the newest offset can't be seen, so
-- messages are staged there; a scheduler moves them into the log after the commit. `known` is explained in append.sql.

-- Whether one of the topics does not have `known` partitions. In READ COMMITTED the answer holds until the transaction
-- ends, because the partitions are locked.
CREATE FUNCTION {schema}sqlmq_is_grown(partition_ids bigint[], known integer[], home regclass DEFAULT {home}) RETURNS boolean
LANGUAGE plpgsql AS $sqlmq$
DECLARE
    path text;
    is_grown boolean;
BEGIN
    {follow}
    IF current_setting('transaction_isolation') = 'read committed' THEN
        is_grown := cardinality({schema}sqlmq_next_offsets(partition_ids, known)) = 0;
    ELSE
        is_grown := EXISTS (
            SELECT FROM unnest(partition_ids, known) AS w (id, known)
            JOIN {schema}sqlmq_partition p ON p.id = w.id
            WHERE p.topic_id IS NOT NULL AND p.topic_partitions <> w.known
        );
    END IF;
    {end}
    RETURN is_grown;
END
$sqlmq$;

-- Appends like sqlmq_append. Above READ COMMITTED it stages the messages instead and returns NULL. That takes no lock, and
-- reads nothing that another such transaction writes.
CREATE FUNCTION {schema}sqlmq_publish(
    partition_ids bigint[], counts integer[], keys bytea[], vals bytea[], headers text[], known integer[],
    home regclass DEFAULT {home}
) RETURNS bigint[] LANGUAGE plpgsql AS $sqlmq$
DECLARE
    path text;
    present bigint[];
    bases bigint[];
BEGIN
    {follow}
    IF current_setting('transaction_isolation') = 'read committed' THEN
        bases := {schema}sqlmq_append(partition_ids, counts, keys, vals, headers, known);
    ELSIF {schema}sqlmq_is_grown(partition_ids, known) THEN
        bases := '{}';
    ELSE
        SELECT array_agg(p.id) INTO present FROM {schema}sqlmq_partition p
        WHERE p.id = ANY (partition_ids) AND p.topic_id IS NOT NULL;
        IF present IS NULL OR NOT present @> partition_ids THEN
            PERFORM {schema}sqlmq_raise_deleted(partition_ids, present);
        END IF;

        INSERT INTO {schema}sqlmq_staged (partition_id, topic_partitions, key, value, headers)
        SELECT
            unnest(ARRAY(SELECT p.id FROM (
                SELECT p.id, generate_series(1, p.count) FROM unnest(partition_ids, counts) AS p (id, count)
            ) p)),
            unnest(ARRAY(SELECT p.known FROM (
                SELECT p.known, generate_series(1, p.count) FROM unnest(known, counts) AS p (known, count)
            ) p)),
            unnest(keys),
            unnest(vals),
            unnest(headers)::jsonb;
    END IF;
    {end}
    RETURN bases;
END
$sqlmq$;

-- The same for one message.
CREATE FUNCTION {schema}sqlmq_publish_one(
    partition_id bigint, key bytea, value bytea, headers text, known integer, home regclass DEFAULT {home}
) RETURNS bigint LANGUAGE plpgsql AS $sqlmq$
DECLARE
    path text;
    bases bigint[];
    base bigint;
BEGIN
    {follow}
    IF current_setting('transaction_isolation') = 'read committed' THEN
        base := {schema}sqlmq_append_one(partition_id, key, value, headers, known);
    ELSE
        bases := {schema}sqlmq_publish(
            ARRAY[partition_id], ARRAY[1], ARRAY[key], ARRAY[value], ARRAY[headers], ARRAY[known]
        );
        base := CASE WHEN cardinality(bases) = 0 THEN -1 END;
    END IF;
    {end}
    RETURN base;
END
$sqlmq$;

-- The function for SQL programs and triggers:
--     SELECT sqlmq_produce('orders', 'customer 7', 'paid');
--     SELECT * FROM sqlmq_produce('orders', NULL::bytea, '\x00ff'::bytea, jsonb_build_object('type', 'paid'), 2);
-- The key decides the partition as in Python. Without a key it is a random one. `partition` names it instead.
-- message_offset is NULL above READ COMMITTED. Starts again if the topic gets more partitions meanwhile.
CREATE FUNCTION {schema}sqlmq_produce(
    topic text,
    key bytea,
    value bytea,
    headers jsonb DEFAULT NULL,
    partition integer DEFAULT NULL,
    home regclass DEFAULT {home},
    OUT partition_number integer,
    OUT message_offset bigint
) LANGUAGE plpgsql AS $sqlmq$
DECLARE
    path text;
    found_topic record;
    found_partition bigint;
BEGIN
    {follow}
    IF value IS NULL THEN
        RAISE EXCEPTION 'a message''s value can''t be NULL' USING ERRCODE = 'null_value_not_allowed',
            HINT = 'Produce an empty value, or none.';
    END IF;
    IF jsonb_typeof(headers) <> 'object'
        OR EXISTS (SELECT FROM jsonb_each(headers) h WHERE jsonb_typeof(h.value) <> 'string')
    THEN
        RAISE EXCEPTION 'headers must be a JSON object whose values are strings' USING ERRCODE = 'invalid_parameter_value';
    END IF;

    LOOP
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

        message_offset := {schema}sqlmq_publish_one(
            found_partition, key, value, nullif(headers, '{}')::text, found_topic.partitions
        );
        EXIT WHEN message_offset IS DISTINCT FROM -1;
    END LOOP;
    {end}
END
$sqlmq$;

-- The same for text, which is stored in UTF-8.
CREATE FUNCTION {schema}sqlmq_produce(
    topic text,
    key text,
    value text,
    headers jsonb DEFAULT NULL,
    partition integer DEFAULT NULL,
    home regclass DEFAULT {home},
    OUT partition_number integer,
    OUT message_offset bigint
) LANGUAGE plpgsql AS $sqlmq$
DECLARE
    path text;
BEGIN
    {follow}
    SELECT p.partition_number, p.message_offset INTO partition_number, message_offset
    FROM {schema}sqlmq_produce(topic, convert_to(key, 'UTF8'), convert_to(value, 'UTF8'), headers, partition) p;
    {end}
END
$sqlmq$;
