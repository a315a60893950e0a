"""The threads of one MQ.

heartbeat  heartbeats of all consumers, and housekeeping: commits that are due
wakeups    waiting for messages without missing a wake-up, in a thread or an event loop
poller     polls the database for all waiting consumers at once
scheduler  moves staged and delayed messages into the log when they are due
retention  deletes what exceeds the retention of topics, about once a minute
notifier   sends NOTIFY to other processes after commits
listener   receives NOTIFY, and tests that it does
"""
