DROP FUNCTION {schema}sqlmq_publish(bigint[], integer[], bytea[], bytea[], text[]);
DROP FUNCTION {schema}sqlmq_raise_deleted(bigint[], bigint[]);
