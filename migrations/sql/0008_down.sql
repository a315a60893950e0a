DROP VIEW {schema}sqlmq_member_stats;
DROP VIEW {schema}sqlmq_topic_stats;
DROP VIEW {schema}sqlmq_partition_stats;
DROP VIEW {schema}sqlmq_lag;
