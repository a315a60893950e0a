"""The threads of one MQ.

thread     `BackgroundThread`: start, stop and fork of a thread, once for all below
registry   the members of this process: who they are, and which to wake
heartbeat  heartbeats of all members, and housekeeping: commits that are due
wakeups    waiting for messages without missing a wake-up, in a thread or an event loop
poller     polls the database for all waiting members at once
notifier   announces new messages: wakes members, and sends NOTIFY to other processes after commits
listener   receives NOTIFY, and tests that it does
scheduler  moves staged and delayed messages into the log when they are due
retention  deletes what exceeds the retention of topics, about once a minute
"""
