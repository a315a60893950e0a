DROP VIEW {schema}sqlmq_blocked_key;
DROP VIEW {schema}sqlmq_dead_letter;
DROP VIEW {schema}sqlmq_parked_message;
