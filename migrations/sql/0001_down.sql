DROP FUNCTION {schema}sqlmq_produce(text, text, text, jsonb, integer);
DROP FUNCTION {schema}sqlmq_produce(text, bytea, bytea, jsonb, integer);
DROP FUNCTION {schema}sqlmq_append(bigint[], integer[], bytea[], bytea[], text[]);
DROP FUNCTION {schema}sqlmq_partition_for_key(text, bytea, integer);
DROP FUNCTION {schema}sqlmq_crc32(bytea);
DROP FUNCTION {schema}sqlmq_fnv1a(bytea);
DROP FUNCTION {schema}sqlmq_murmur2(bytea);
