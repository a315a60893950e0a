"""The SQL, a module for each table. Only the SQL that appends and reads messages is in ``dialects``.

It is the same for all databases, so each must have RETURNING, NULLS FIRST and DELETE with a CTE.

topics     `sqlmq_topic` and `sqlmq_partition`
messages   `sqlmq_message`: bounds, and messages by time
offsets    `sqlmq_group_offset`: positions inserted, pruned, read
groups     `sqlmq_group` and `sqlmq_member`
claims     `sqlmq_claim`: who owns a partition; the fence
staged     `sqlmq_staged`: messages that are not in the log yet
parked     `sqlmq_parked`: messages that a group has parked
retention  what topics keep: limits, starts, deletions, evictions
views      the views of lag, partitions and members
"""
