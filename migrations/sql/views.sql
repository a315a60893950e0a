-- Views that are the same on Postgres and SQLite.

-- Parked messages that have used up their attempts.
CREATE VIEW {schema}sqlmq_dead_letter AS
SELECT
    topic, group_name, partition, msg_offset, key, attempts, error_type, error, traceback, first_failed_at,
    last_failed_at, value, headers, created_at
FROM {schema}sqlmq_parked_message WHERE state = 'dead';

-- Added partitions that a group does not read yet, with the parent partition that it must finish first: everything below
-- the barrier, and no message with a key may be parked there for a retry. Consumers read this view before they claim.
CREATE VIEW {schema}sqlmq_partition_barrier AS
SELECT
    t.name AS topic, g.name AS group_name, p.number AS partition, e.number AS parent, o.barrier_offset AS barrier_offset,
    c.group_id AS group_id, c.partition_id AS partition_id
FROM {schema}sqlmq_claim c
JOIN {schema}sqlmq_partition_parent o ON o.partition_id = c.partition_id
JOIN {schema}sqlmq_partition p ON p.id = o.partition_id
JOIN {schema}sqlmq_partition e ON e.id = o.parent_id
JOIN {schema}sqlmq_topic t ON t.id = p.topic_id
JOIN {schema}sqlmq_group g ON g.id = c.group_id
WHERE c.member_id IS NULL AND (
    -- No group will read what retention has deleted.
    e.start_offset < o.barrier_offset AND COALESCE((
        SELECT w.committed_offset FROM {schema}sqlmq_group_offset w
        WHERE w.group_id = c.group_id AND w.partition_id = o.parent_id ORDER BY w.committed_offset DESC LIMIT 1
    ), e.start_offset) < o.barrier_offset
    -- Not EXISTS: for that Postgres may read the parked messages of all groups.
    OR (
        SELECT 1 FROM {schema}sqlmq_parked k
        WHERE k.group_id = c.group_id AND k.partition_id = o.parent_id AND k.msg_offset < o.barrier_offset
            AND k.state <> 'dead' AND k.key IS NOT NULL
        LIMIT 1
    ) IS NOT NULL
);
