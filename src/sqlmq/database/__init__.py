"""Where our own transactions begin, end and are retried.

database           `Database`: the transactions of one MQ, on one engine
engines            engines, made from a URL, and what their pools lend
retrying           which errors are transient, and how a transaction is tried again
watchdog           cuts off connections on which the database has been silent for too long
writer_lock        one writer at a time on SQLite; heartbeats go first
drain              how many transactions are under way, so that closing can wait for them
append_connection  a connection kept at hand for appends
fork_hooks         what happens to connections when the process forks
close_once         closing once, with the same result for every caller
"""
