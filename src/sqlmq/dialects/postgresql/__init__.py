"""Postgres, by psycopg 3.

dialect     `Postgresql`: engines, transactions, locks
append      messages as binary arrays and COPY
read        the read of the log, in binary
errors      SQLSTATEs, translated to errors of ours
inspection  settings, sessions, locks and tables, as the server reports them
listen      LISTEN and NOTIFY
session     one session: its conventions, its login, its socket, a pooler before it
roles       which rights a monitor, a producer, a consumer and an admin need
"""
