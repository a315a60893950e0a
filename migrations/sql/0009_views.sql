-- The partitions, added to a topic, that a group does not read yet, and what of which other it has to be done with first:
-- everything below the barrier, and nothing with a key may wait there to be tried again. Consumers ask it, too.
CREATE VIEW {schema}sqlmq_not_yet AS
SELECT
    t.name AS topic, g.name AS group_name, p.number AS partition, e.number AS origin, o.barrier_offset AS barrier_offset,
    c.group_id AS group_id, c.partition_id AS partition_id
FROM {schema}sqlmq_claim c
JOIN {schema}sqlmq_origin o ON o.partition_id = c.partition_id
JOIN {schema}sqlmq_partition p ON p.id = o.partition_id
JOIN {schema}sqlmq_partition e ON e.id = o.origin_id
JOIN {schema}sqlmq_topic t ON t.id = p.topic_id
JOIN {schema}sqlmq_group g ON g.id = c.group_id
WHERE c.member_id IS NULL AND (
    -- What retention has deleted nobody will read any more.
    e.start_offset < o.barrier_offset AND COALESCE((
        SELECT w.committed_offset FROM {schema}sqlmq_group_offset w
        WHERE w.group_id = c.group_id AND w.partition_id = o.origin_id ORDER BY w.committed_offset DESC LIMIT 1
    ), e.start_offset) < o.barrier_offset
    -- Not EXISTS, for which Postgres may read what all groups have set aside.
    OR (
        SELECT 1 FROM {schema}sqlmq_parked k
        WHERE k.group_id = c.group_id AND k.partition_id = o.origin_id AND k.msg_offset < o.barrier_offset
            AND k.state <> 'dead' AND k.key IS NOT NULL
        LIMIT 1
    ) IS NOT NULL
);
