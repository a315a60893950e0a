-- Views for people and monitoring; the library reads lag, members and sizes through them, too. Positions, ends and ages are
-- found by primary keys: no view counts the log. No age is negative: a moment that lies ahead is from before the clock was
-- set back. A heartbeat further ahead than a lease is over, as the library decides it.

-- How far each group is in each partition, and which member owns it.
CREATE VIEW {schema}sqlmq_lag AS
SELECT
    t.name AS topic, g.name AS group_name, p.number AS partition,
    COALESCE(o.committed_offset, p.start_offset) AS position,
    COALESCE(e.msg_offset + 1, p.start_offset) AS end_offset,
    GREATEST(COALESCE(e.msg_offset + 1, p.start_offset) - COALESCE(o.committed_offset, p.start_offset), 0) AS lag,
    COALESCE(GREATEST(date_part('epoch', clock_timestamp() - n.created_at), 0), 0) AS lag_seconds,
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
    ON m.id = c.member_id AND abs(date_part('epoch', clock_timestamp() - m.heartbeat_at)) < m.lease_seconds
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE state <> 'dead') AS waiting, count(*) FILTER (WHERE state = 'dead') AS dead
    FROM {schema}sqlmq_parked WHERE group_id = g.id AND partition_id = p.id
) k;

-- Size and growth of each partition. The first message of the last minute is found by a binary search over the offsets, so
-- the rate is an estimate: moments in a log are not quite sorted. A moment that lies ahead is not of the last minute.
-- Bytes are estimated from the 100 newest messages, plus 88 for the row's header, its numbers and its index entry.
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
    WITH RECURSIVE bisection (low, high) AS (
        SELECT p.start_offset, e.end_offset
        UNION ALL
        SELECT
            CASE WHEN m.is_recent THEN low ELSE (low + high) / 2 + 1 END,
            CASE WHEN m.is_recent THEN (low + high) / 2 ELSE high END
        FROM bisection
        LEFT JOIN LATERAL (
            SELECT created_at BETWEEN clock_timestamp() - interval '1 minute' AND clock_timestamp() AS is_recent FROM {schema}sqlmq_message
            WHERE partition_id = p.id AND msg_offset = (low + high) / 2 LIMIT 1
        ) m ON true
        WHERE low < high
    )
    SELECT max(low) AS first_offset FROM bisection
) r
CROSS JOIN LATERAL (
    SELECT avg(88 + pg_column_size(value) + COALESCE(pg_column_size(key), 0) + COALESCE(pg_column_size(headers), 0)) AS bytes
    FROM {schema}sqlmq_message
    WHERE partition_id = p.id AND msg_offset >= GREATEST(p.start_offset, e.end_offset - 100)
) s;

-- Size and growth of each topic.
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
        WHERE t.name = s.topic AND abs(date_part('epoch', clock_timestamp() - m.heartbeat_at)) < m.lease_seconds
    ) AS members
FROM {schema}sqlmq_partition_stats s
GROUP BY s.topic;

-- The members of each group, including members whose lease has expired and that are not removed yet.
CREATE VIEW {schema}sqlmq_member_stats AS
SELECT
    t.name AS topic, g.name AS group_name, m.name AS member, m.joined_at AS joined_at,
    GREATEST(date_part('epoch', clock_timestamp() - m.heartbeat_at), 0) AS heartbeat_seconds, m.lease_seconds AS lease_seconds,
    abs(date_part('epoch', clock_timestamp() - m.heartbeat_at)) < m.lease_seconds AS is_live,
    m.wants_partitions AS wants_partitions,
    COALESCE((
        SELECT string_agg(CAST(p.number AS text), ',' ORDER BY p.number)
        FROM {schema}sqlmq_claim c JOIN {schema}sqlmq_partition p ON p.id = c.partition_id
        WHERE c.group_id = m.group_id AND c.member_id = m.id
    ), '') AS partitions,
    GREATEST(date_part('epoch', m.heartbeat_at - clock_timestamp()), 0) AS heartbeat_ahead_seconds
FROM {schema}sqlmq_member m
JOIN {schema}sqlmq_group g ON g.id = m.group_id
JOIN {schema}sqlmq_topic t ON t.id = g.topic_id;

-- The messages that groups have parked.
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

-- Keys with parked messages that are not dead letters. All wait for the first, whose state, attempts and due_at are shown.
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
