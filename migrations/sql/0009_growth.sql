-- Whoever appends says of how many partitions of the topic it knows, and is told if there are more by now: nothing is
-- written then. So no key goes on in a partition that it has left. Told by a value, not by an error, which would end
-- the application's transaction.

DROP FUNCTION {schema}sqlmq_publish_one(bigint, bytea, bytea, text);
DROP FUNCTION {schema}sqlmq_publish(bigint[], integer[], bytea[], bytea[], text[]);
DROP FUNCTION {schema}sqlmq_append_one(bigint, bytea, bytea, text);
DROP FUNCTION {schema}sqlmq_append(bigint[], integer[], bytea[], bytea[], text[]);
DROP FUNCTION {schema}sqlmq_next_offsets(bigint[]);
DROP FUNCTION {schema}sqlmq_next_offset(bigint);

-- Locks a partition and tells the offset that its next message gets; -1 if its topic has other than the partitions known.
CREATE FUNCTION {schema}sqlmq_next_offset(wanted bigint, known integer) RETURNS bigint
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off{search_path} AS $sqlmq$
DECLARE
    oldest bigint;
    present integer;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM {schema}sqlmq_raise_isolation();
    END IF;

    -- The row stays locked until the transaction ends, so offsets become visible in their order. It is not changed: a
    -- row that is rewritten for each append slows to a crawl while somebody holds an old snapshot.
    SELECT p.start_offset, p.topic_partitions INTO oldest, present FROM {schema}sqlmq_partition p
    WHERE p.id = wanted AND p.topic_id IS NOT NULL
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM {schema}sqlmq_raise_deleted(ARRAY[wanted], NULL);
    END IF;
    IF present <> known THEN
        RETURN -1;
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
-- each other. Empty if one of their topics has other than the partitions known.
CREATE FUNCTION {schema}sqlmq_next_offsets(partition_ids bigint[], known integer[]) RETURNS bigint[]
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off{search_path} AS $sqlmq$
DECLARE
    locked bigint[];
    oldest bigint[];
    present integer[];
    base bigint;
BEGIN
    IF cardinality(partition_ids) = 1 THEN
        base := {schema}sqlmq_next_offset(partition_ids[1], known[1]);
        RETURN CASE WHEN base < 0 THEN '{}' ELSE ARRAY[base] END;
    END IF;
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
        RETURN '{}';
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

-- Messages lie in order of their partitions: the first counts[1] are for partition_ids[1], and so on. Returns the offset
-- of the first in each; nothing, and appends nothing, if one of their topics has other than the partitions known.
CREATE FUNCTION {schema}sqlmq_append(
    partition_ids bigint[], counts integer[], keys bytea[], vals bytea[], headers text[], known integer[]
) RETURNS bigint[] LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan{search_path} AS $sqlmq$
DECLARE
    bases bigint[] := {schema}sqlmq_next_offsets(partition_ids, known);
BEGIN
    IF cardinality(bases) = 0 THEN
        RETURN bases;
    END IF;
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

-- The same for one message; -1 if the topic has other than the partitions known.
CREATE FUNCTION {schema}sqlmq_append_one(partition_id bigint, key bytea, value bytea, headers text, known integer)
RETURNS bigint LANGUAGE plpgsql{search_path} AS $sqlmq$
DECLARE
    base bigint := {schema}sqlmq_next_offset(partition_id, known);
BEGIN
    IF base >= 0 THEN
        INSERT INTO {schema}sqlmq_message (partition_id, msg_offset, key, value, headers)
        VALUES (partition_id, base, key, value, headers::jsonb);
    END IF;
    RETURN base;
END
$sqlmq$;

-- Whether one of the topics has other than the partitions known. In READ COMMITTED that stays so until the transaction
-- ends: the partitions are locked then.
CREATE FUNCTION {schema}sqlmq_is_grown(partition_ids bigint[], known integer[]) RETURNS boolean
LANGUAGE plpgsql{search_path} AS $sqlmq$
BEGIN
    IF current_setting('transaction_isolation') = 'read committed' THEN
        RETURN cardinality({schema}sqlmq_next_offsets(partition_ids, known)) = 0;
    END IF;
    RETURN EXISTS (
        SELECT FROM unnest(partition_ids, known) AS w (id, known)
        JOIN {schema}sqlmq_partition p ON p.id = w.id
        WHERE p.topic_id IS NOT NULL AND p.topic_partitions <> w.known
    );
END
$sqlmq$;

-- As sqlmq_append. Above READ COMMITTED the newest offset can't be seen, so there the messages are staged, to be moved
-- into the log once they are committed, and NULL is returned. That takes no lock, and reads nothing that another such
-- transaction writes.
CREATE FUNCTION {schema}sqlmq_publish(
    partition_ids bigint[], counts integer[], keys bytea[], vals bytea[], headers text[], known integer[]
) RETURNS bigint[] LANGUAGE plpgsql{search_path} AS $sqlmq$
DECLARE
    present bigint[];
BEGIN
    IF current_setting('transaction_isolation') = 'read committed' THEN
        RETURN {schema}sqlmq_append(partition_ids, counts, keys, vals, headers, known);
    END IF;
    IF {schema}sqlmq_is_grown(partition_ids, known) THEN
        RETURN '{}';
    END IF;

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
    RETURN NULL;
END
$sqlmq$;

-- The same for one message.
CREATE FUNCTION {schema}sqlmq_publish_one(partition_id bigint, key bytea, value bytea, headers text, known integer)
RETURNS bigint LANGUAGE plpgsql{search_path} AS $sqlmq$
DECLARE
    bases bigint[];
BEGIN
    IF current_setting('transaction_isolation') = 'read committed' THEN
        RETURN {schema}sqlmq_append_one(partition_id, key, value, headers, known);
    END IF;
    bases := {schema}sqlmq_publish(
        ARRAY[partition_id], ARRAY[1], ARRAY[key], ARRAY[value], ARRAY[headers], ARRAY[known]
    );
    RETURN CASE WHEN cardinality(bases) = 0 THEN -1 END;
END
$sqlmq$;

-- As before, and once more if the topic gets more partitions meanwhile.
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
END
$sqlmq$;
