DROP VIEW {schema}sqlmq_partition_barrier;
DROP VIEW {schema}sqlmq_dead_letter;
DROP VIEW {schema}sqlmq_blocked_key;
DROP VIEW {schema}sqlmq_parked_message;
DROP VIEW {schema}sqlmq_member_stats;
DROP VIEW {schema}sqlmq_topic_stats;
DROP VIEW {schema}sqlmq_partition_stats;
DROP VIEW {schema}sqlmq_lag;
