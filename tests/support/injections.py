"""Texts that would do harm if they became part of a statement."""

INJECTIONS = [
    "'; DROP TABLE sqlmq_message; --",
    '"; DROP TABLE sqlmq_message; --',
    "' OR '1'='1",
    "1; SELECT pg_sleep(10)",
    "\\'; DROP TABLE sqlmq_topic; --",
    "$$; DROP TABLE sqlmq_topic; $$",
    "%s %(name)s %% %b",
    ":name ? $1 {0} {name}",
    "/* */ UNION SELECT * FROM sqlmq_message",
    "a\nb; DROP TABLE sqlmq_topic",
    "sqlmq_topic'--",
    "x'||(SELECT name FROM sqlmq_topic)||'",
]
