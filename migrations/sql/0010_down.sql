-- The same for one message; -1 if the topic has other than the partitions known.
CREATE OR REPLACE FUNCTION {schema}sqlmq_append_one(partition_id bigint, key bytea, value bytea, headers text, known integer)
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
