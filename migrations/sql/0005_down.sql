DROP FUNCTION {schema}sqlmq_publish_one(bigint, bytea, bytea, text);
DROP FUNCTION {schema}sqlmq_append_one(bigint, bytea, bytea, text);
DROP FUNCTION {schema}sqlmq_free_partition(bigint[]);
DROP FUNCTION {schema}sqlmq_next_offsets(bigint[]);
DROP FUNCTION {schema}sqlmq_next_offset(bigint);
DROP FUNCTION {schema}sqlmq_raise_isolation();
