DROP FUNCTION {schema}sqlmq_is_grown(bigint[], integer[]);
DROP FUNCTION {schema}sqlmq_publish_one(bigint, bytea, bytea, text, integer);
DROP FUNCTION {schema}sqlmq_publish(bigint[], integer[], bytea[], bytea[], text[], integer[]);
DROP FUNCTION {schema}sqlmq_append_one(bigint, bytea, bytea, text, integer);
DROP FUNCTION {schema}sqlmq_append(bigint[], integer[], bytea[], bytea[], text[], integer[]);
DROP FUNCTION {schema}sqlmq_next_offsets(bigint[], integer[]);
DROP FUNCTION {schema}sqlmq_next_offset(bigint, integer);
DROP FUNCTION {schema}sqlmq_free_partition(bigint[]);
DROP FUNCTION {schema}sqlmq_raise_isolation();
