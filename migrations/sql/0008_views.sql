-- How far each group is in each partition, and who reads it. Positions, ends and ages by primary keys: never counts the log.
CREATE VIEW {schema}sqlmq_lag AS
SELECT
    t.name AS topic, g.name AS group_name, p.number AS partition,
    COALESCE(o.committed_offset, p.start_offset) AS position,
    COALESCE(e.msg_offset + 1, p.start_offset) AS end_offset,
    GREATEST(COALESCE(e.msg_offset + 1, p.start_offset) - COALESCE(o.committed_offset, p.start_offset), 0) AS messages,
    COALESCE(GREATEST(date_part('epoch', clock_timestamp() - n.created_at), 0), 0) AS seconds,
    m.name AS owner,
    o.committed_at AS committed_at,
    k.waiting, k.dead
FROM {schema}sqlmq_group g
JOIN {schema}sqlmq_topic t ON t.id = g.topic_id
JOIN {schema}sqlmq_partition p ON p.topic_id = t.id
LEFT JOIN LATERAL (
    SELECT committed_offset, committed_at FROM {schema}sqlmq_group_offset
    WHERE group_id = g.id AND partition_id = p.id ORDER BY committed_offset DESC LIMIT 1
) o ON true
LEFT JOIN LATERAL (
    SELECT msg_offset FROM {schema}sqlmq_message
    WHERE partition_id = p.id AND msg_offset >= p.start_offset ORDER BY msg_offset DESC LIMIT 1
) e ON true
LEFT JOIN LATERAL (
    SELECT created_at FROM {schema}sqlmq_message
    WHERE partition_id = p.id AND msg_offset >= GREATEST(o.committed_offset, p.start_offset) ORDER BY msg_offset LIMIT 1
) n ON true
LEFT JOIN {schema}sqlmq_claim c ON c.group_id = g.id AND c.partition_id = p.id
LEFT JOIN {schema}sqlmq_member m
    ON m.id = c.member_id AND date_part('epoch', clock_timestamp() - m.heartbeat_at) < m.lease_seconds
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE state <> 'dead') AS waiting, count(*) FILTER (WHERE state = 'dead') AS dead
    FROM {schema}sqlmq_parked WHERE group_id = g.id AND partition_id = p.id
) k;

-- What each partition holds and how fast it grows: messages of the last minute, found by halving the range of offsets;
-- bytes by the 100 newest, with 88 for the row's header, its numbers and its entry in the index.
CREATE VIEW {schema}sqlmq_partition_stats AS
SELECT
    t.name AS topic, p.number AS partition, p.start_offset AS start_offset, e.end_offset AS end_offset,
    e.end_offset - p.start_offset AS messages,
    (e.end_offset - r.first_offset) / 60.0::double precision AS messages_per_second,
    CAST(COALESCE((e.end_offset - p.start_offset) * s.bytes, 0) AS bigint) AS estimated_bytes,
    e.newest_at AS newest_at
FROM {schema}sqlmq_partition p
JOIN {schema}sqlmq_topic t ON t.id = p.topic_id
CROSS JOIN LATERAL (
    SELECT COALESCE(max(w.msg_offset) + 1, p.start_offset) AS end_offset, max(w.created_at) AS newest_at
    FROM (
        SELECT msg_offset, created_at FROM {schema}sqlmq_message
        WHERE partition_id = p.id AND msg_offset >= p.start_offset ORDER BY msg_offset DESC LIMIT 1
    ) w
) e
CROSS JOIN LATERAL (
    WITH RECURSIVE halving (low, high) AS (
        SELECT p.start_offset, e.end_offset
        UNION ALL
        SELECT
            CASE WHEN m.is_recent THEN low ELSE (low + high) / 2 + 1 END,
            CASE WHEN m.is_recent THEN (low + high) / 2 ELSE high END
        FROM halving
        LEFT JOIN LATERAL (
            SELECT created_at >= clock_timestamp() - interval '1 minute' AS is_recent FROM {schema}sqlmq_message
            WHERE partition_id = p.id AND msg_offset = (low + high) / 2 LIMIT 1
        ) m ON true
        WHERE low < high
    )
    SELECT max(low) AS first_offset FROM halving
) r
CROSS JOIN LATERAL (
    SELECT avg(88 + pg_column_size(value) + COALESCE(pg_column_size(key), 0) + COALESCE(pg_column_size(headers), 0)) AS bytes
    FROM {schema}sqlmq_message
    WHERE partition_id = p.id AND msg_offset >= GREATEST(p.start_offset, e.end_offset - 100)
) s;

-- The same for each topic.
CREATE VIEW {schema}sqlmq_topic_stats AS
SELECT
    s.topic, count(*) AS partitions, CAST(sum(s.messages) AS bigint) AS messages,
    sum(s.messages_per_second) AS messages_per_second,
    CAST(sum(s.estimated_bytes) AS bigint) AS estimated_bytes, max(s.newest_at) AS newest_at,
    (
        SELECT count(*) FROM {schema}sqlmq_group g JOIN {schema}sqlmq_topic t ON t.id = g.topic_id WHERE t.name = s.topic
    ) AS groups,
    (
        SELECT count(*)
        FROM {schema}sqlmq_member m
        JOIN {schema}sqlmq_group g ON g.id = m.group_id
        JOIN {schema}sqlmq_topic t ON t.id = g.topic_id
        WHERE t.name = s.topic AND date_part('epoch', clock_timestamp() - m.heartbeat_at) < m.lease_seconds
    ) AS members
FROM {schema}sqlmq_partition_stats s
GROUP BY s.topic;

-- Who is in a group, those included whose lease is over and whom nobody has removed yet.
CREATE VIEW {schema}sqlmq_member_stats AS
SELECT
    t.name AS topic, g.name AS group_name, m.name AS member, m.joined_at AS joined_at,
    date_part('epoch', clock_timestamp() - m.heartbeat_at) AS heartbeat_seconds, m.lease_seconds AS lease_seconds,
    date_part('epoch', clock_timestamp() - m.heartbeat_at) < m.lease_seconds AS is_live,
    m.is_waiting AS is_waiting,
    COALESCE((
        SELECT string_agg(CAST(p.number AS text), ',' ORDER BY p.number)
        FROM {schema}sqlmq_claim c JOIN {schema}sqlmq_partition p ON p.id = c.partition_id
        WHERE c.group_id = m.group_id AND c.member_id = m.id
    ), '') AS partitions
FROM {schema}sqlmq_member m
JOIN {schema}sqlmq_group g ON g.id = m.group_id
JOIN {schema}sqlmq_topic t ON t.id = g.topic_id;
