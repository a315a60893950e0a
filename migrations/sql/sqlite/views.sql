-- The views of postgresql/views.sql. Moments are text in UTC; ages are worked out by SQLite's own clock, and are never negative.

-- How far each group is in each partition, and which member owns it.
CREATE VIEW sqlmq_lag AS
SELECT
    w.topic, w.group_name, w.partition, w.position, w.end_offset, max(w.end_offset - w.position, 0) AS lag,
    COALESCE((
        SELECT max((w.now_us - m.created_at) / 1000000.0, 0.0) FROM sqlmq_message m
        WHERE m.partition_id = w.partition_id AND m.msg_offset >= max(w.position, w.start_offset)
        ORDER BY m.msg_offset LIMIT 1
    ), 0.0) AS lag_seconds,
    w.owner,
    strftime('%Y-%m-%dT%H:%M:%fZ', w.committed_us / 1000000.0, 'unixepoch') AS committed_at,
    w.waiting, w.dead
FROM (
    SELECT
        t.name AS topic, g.name AS group_name, p.number AS partition, p.id AS partition_id,
        p.start_offset AS start_offset, n.now_us AS now_us,
        COALESCE((
            SELECT o.committed_offset FROM sqlmq_group_offset o
            WHERE o.group_id = g.id AND o.partition_id = p.id ORDER BY o.committed_offset DESC LIMIT 1
        ), p.start_offset) AS position,
        COALESCE((
            SELECT m.msg_offset + 1 FROM sqlmq_message m
            WHERE m.partition_id = p.id AND m.msg_offset >= p.start_offset ORDER BY m.msg_offset DESC LIMIT 1
        ), p.start_offset) AS end_offset,
        (
            SELECT r.name FROM sqlmq_claim c CROSS JOIN sqlmq_member r ON r.id = c.member_id
            WHERE c.group_id = g.id AND c.partition_id = p.id
                AND abs(n.now_us - r.heartbeat_at) / 1000000.0 < r.lease_seconds
        ) AS owner,
        (
            SELECT o.committed_at FROM sqlmq_group_offset o
            WHERE o.group_id = g.id AND o.partition_id = p.id ORDER BY o.committed_offset DESC LIMIT 1
        ) AS committed_us,
        (
            SELECT count(*) FROM sqlmq_parked k
            WHERE k.group_id = g.id AND k.partition_id = p.id AND k.state <> 'dead'
        ) AS waiting,
        (
            SELECT count(*) FROM sqlmq_parked k
            WHERE k.group_id = g.id AND k.partition_id = p.id AND k.state = 'dead'
        ) AS dead
    FROM (SELECT CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER) AS now_us) n
    CROSS JOIN sqlmq_group g
    JOIN sqlmq_topic t ON t.id = g.topic_id
    JOIN sqlmq_partition p ON p.topic_id = t.id
) w;

-- Size and growth of each partition. The first message of the last minute is found by a binary search over the offsets, so
-- the rate is an estimate: moments in a log are not quite sorted. A moment that lies ahead is not of the last minute.
-- Bytes are estimated from the 100 newest messages, plus 24 for the row's numbers.
CREATE VIEW sqlmq_partition_stats AS
SELECT
    w.topic, w.partition, w.start_offset, w.end_offset, w.end_offset - w.start_offset AS messages,
    (w.end_offset - (
        WITH RECURSIVE bisection (low, high) AS (
            SELECT w.start_offset, w.end_offset
            UNION ALL
            SELECT
                CASE WHEN m.created_at BETWEEN w.minute_ago AND w.minute_ago + 60000000 THEN low ELSE (low + high) / 2 + 1 END,
                CASE WHEN m.created_at BETWEEN w.minute_ago AND w.minute_ago + 60000000 THEN (low + high) / 2 ELSE high END
            FROM bisection
            LEFT JOIN sqlmq_message m ON m.partition_id = w.partition_id AND m.msg_offset = (low + high) / 2
            WHERE low < high
        )
        SELECT max(low) FROM bisection
    )) / 60.0 AS messages_per_second,
    CAST(COALESCE((w.end_offset - w.start_offset) * (
        SELECT avg(24 + length(m.value) + COALESCE(length(m.key), 0) + COALESCE(length(m.headers), 0))
        FROM sqlmq_message m
        WHERE m.partition_id = w.partition_id AND m.msg_offset >= max(w.start_offset, w.end_offset - 100)
    ), 0) AS INTEGER) AS estimated_bytes,
    strftime('%Y-%m-%dT%H:%M:%fZ', (
        SELECT m.created_at FROM sqlmq_message m
        WHERE m.partition_id = w.partition_id AND m.msg_offset = w.end_offset - 1
    ) / 1000000.0, 'unixepoch') AS newest_at
FROM (
    SELECT
        t.name AS topic, p.number AS partition, p.id AS partition_id, p.start_offset AS start_offset,
        CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER) - 60000000 AS minute_ago,
        COALESCE((
            SELECT m.msg_offset + 1 FROM sqlmq_message m
            WHERE m.partition_id = p.id AND m.msg_offset >= p.start_offset ORDER BY m.msg_offset DESC LIMIT 1
        ), p.start_offset) AS end_offset
    FROM sqlmq_partition p
    JOIN sqlmq_topic t ON t.id = p.topic_id
) w;

-- Size and growth of each topic.
CREATE VIEW sqlmq_topic_stats AS
SELECT
    s.topic, count(*) AS partitions, sum(s.messages) AS messages, sum(s.messages_per_second) AS messages_per_second,
    sum(s.estimated_bytes) AS estimated_bytes, max(s.newest_at) AS newest_at,
    (SELECT count(*) FROM sqlmq_group g JOIN sqlmq_topic t ON t.id = g.topic_id WHERE t.name = s.topic) AS groups,
    (
        SELECT count(*)
        FROM sqlmq_member m
        JOIN sqlmq_group g ON g.id = m.group_id
        JOIN sqlmq_topic t ON t.id = g.topic_id
        WHERE t.name = s.topic
            AND abs(CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER) - m.heartbeat_at) / 1000000.0
                < m.lease_seconds
    ) AS members
FROM sqlmq_partition_stats s
GROUP BY s.topic;

-- The members of each group, including members whose lease has expired and that are not removed yet.
CREATE VIEW sqlmq_member_stats AS
SELECT
    w.topic, w.group_name, w.member,
    strftime('%Y-%m-%dT%H:%M:%fZ', w.joined_us / 1000000.0, 'unixepoch') AS joined_at,
    max(w.heartbeat_age, 0.0) AS heartbeat_seconds, w.lease_seconds, abs(w.heartbeat_age) < w.lease_seconds AS is_live,
    w.wants_partitions, w.partitions, max(-w.heartbeat_age, 0.0) AS heartbeat_ahead_seconds
FROM (
    SELECT
        t.name AS topic, g.name AS group_name, r.name AS member, r.joined_at AS joined_us,
        (CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER) - r.heartbeat_at) / 1000000.0
            AS heartbeat_age,
        r.lease_seconds AS lease_seconds, r.wants_partitions AS wants_partitions,
        COALESCE((
            SELECT group_concat(o.number) FROM (
                SELECT p.number AS number FROM sqlmq_claim c CROSS JOIN sqlmq_partition p ON p.id = c.partition_id
                WHERE c.group_id = r.group_id AND c.member_id = r.id ORDER BY p.number
            ) o
        ), '') AS partitions
    FROM sqlmq_member r
    JOIN sqlmq_group g ON g.id = r.group_id
    JOIN sqlmq_topic t ON t.id = g.topic_id
) w;

-- The messages that groups have parked.
CREATE VIEW sqlmq_parked_message AS
SELECT
    t.name AS topic, g.name AS group_name, p.number AS partition, k.msg_offset, k.state, k.key, k.attempts,
    CASE WHEN k.state IN ('waiting', 'held') THEN strftime('%Y-%m-%dT%H:%M:%fZ', k.due_at / 1000000.0, 'unixepoch') END AS due_at,
    k.error_type, k.last_error AS error, k.traceback,
    strftime('%Y-%m-%dT%H:%M:%fZ', k.first_failed_at / 1000000.0, 'unixepoch') AS first_failed_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', k.last_failed_at / 1000000.0, 'unixepoch') AS last_failed_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', k.parked_at / 1000000.0, 'unixepoch') AS parked_at,
    m.value, m.headers,
    strftime('%Y-%m-%dT%H:%M:%fZ', m.created_at / 1000000.0, 'unixepoch') AS created_at
FROM sqlmq_parked k
JOIN sqlmq_group g ON g.id = k.group_id
JOIN sqlmq_topic t ON t.id = g.topic_id
JOIN sqlmq_partition p ON p.id = k.partition_id
LEFT JOIN sqlmq_message m ON m.partition_id = k.partition_id AND m.msg_offset = k.msg_offset;

-- Keys with parked messages that are not dead letters. All wait for the first, whose state, attempts and due_at are shown.
CREATE VIEW sqlmq_blocked_key AS
SELECT
    t.name AS topic, g.name AS group_name, p.number AS partition, b.key, b.messages, b.first_offset,
    k.state, k.attempts,
    CASE WHEN k.state IN ('waiting', 'held') THEN strftime('%Y-%m-%dT%H:%M:%fZ', k.due_at / 1000000.0, 'unixepoch') END AS due_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', b.blocked_since / 1000000.0, 'unixepoch') AS blocked_since
FROM (
    SELECT
        group_id, partition_id, key, count(*) AS messages, min(msg_offset) AS first_offset,
        min(parked_at) AS blocked_since
    FROM sqlmq_parked
    WHERE state <> 'dead' AND key IS NOT NULL
    GROUP BY group_id, partition_id, key
) b
JOIN sqlmq_parked k
    ON k.group_id = b.group_id AND k.partition_id = b.partition_id AND k.msg_offset = b.first_offset
JOIN sqlmq_group g ON g.id = b.group_id
JOIN sqlmq_topic t ON t.id = g.topic_id
JOIN sqlmq_partition p ON p.id = b.partition_id;
