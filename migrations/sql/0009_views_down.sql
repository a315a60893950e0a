DROP VIEW {schema}sqlmq_not_yet;
