-- What groups have set aside, for people to look at.
CREATE VIEW {schema}sqlmq_parked_message AS
SELECT
    t.name AS topic, g.name AS group_name, p.number AS partition, k.msg_offset, k.state, k.key, k.attempts,
    CASE WHEN k.state IN ('waiting', 'held') THEN k.due_at END AS due_at,
    k.error_type, k.last_error AS error, k.traceback,
    k.first_failed_at AS first_failed_at,
    k.last_failed_at AS last_failed_at,
    k.parked_at AS parked_at,
    m.value, m.headers,
    m.created_at AS created_at
FROM {schema}sqlmq_parked k
JOIN {schema}sqlmq_group g ON g.id = k.group_id
JOIN {schema}sqlmq_topic t ON t.id = g.topic_id
JOIN {schema}sqlmq_partition p ON p.id = k.partition_id
LEFT JOIN {schema}sqlmq_message m ON m.partition_id = k.partition_id AND m.msg_offset = k.msg_offset;

-- Messages that have used up their attempts.
CREATE VIEW {schema}sqlmq_dead_letter AS
SELECT
    topic, group_name, partition, msg_offset, key, attempts, error_type, error, traceback, first_failed_at,
    last_failed_at, value, headers, created_at
FROM {schema}sqlmq_parked_message WHERE state = 'dead';

-- Keys whose messages wait, each behind the first of them, whose state, attempts and due_at these are.
CREATE VIEW {schema}sqlmq_blocked_key AS
SELECT
    t.name AS topic, g.name AS group_name, p.number AS partition, b.key, b.messages, b.first_offset,
    k.state, k.attempts,
    CASE WHEN k.state IN ('waiting', 'held') THEN k.due_at END AS due_at,
    b.blocked_since AS blocked_since
FROM (
    SELECT
        group_id, partition_id, key, count(*) AS messages, min(msg_offset) AS first_offset,
        min(parked_at) AS blocked_since
    FROM {schema}sqlmq_parked
    WHERE state <> 'dead' AND key IS NOT NULL
    GROUP BY group_id, partition_id, key
) b
JOIN {schema}sqlmq_parked k
    ON k.group_id = b.group_id AND k.partition_id = b.partition_id AND k.msg_offset = b.first_offset
JOIN {schema}sqlmq_group g ON g.id = b.group_id
JOIN {schema}sqlmq_topic t ON t.id = g.topic_id
JOIN {schema}sqlmq_partition p ON p.id = b.partition_id;
