DROP VIEW IF EXISTS {schema}sqlmq_partition_barrier;
DROP VIEW IF EXISTS {schema}sqlmq_dead_letter;
DROP VIEW IF EXISTS {schema}sqlmq_blocked_key;
DROP VIEW IF EXISTS {schema}sqlmq_parked_message;
DROP VIEW IF EXISTS {schema}sqlmq_member_stats;
DROP VIEW IF EXISTS {schema}sqlmq_topic_stats;
DROP VIEW IF EXISTS {schema}sqlmq_partition_stats;
DROP VIEW IF EXISTS {schema}sqlmq_lag;
