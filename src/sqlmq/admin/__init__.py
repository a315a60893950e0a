"""The operations of an operator.

admin   `Admin`: topics and groups, lag, resets, retention, delayed messages; why a group waits
parked  `Parked`: lists, retries, discards and copies parked messages
tail    `Tail`: reads a topic as messages arrive, without a group
health  the examination of the database behind `Admin.diagnose`
access  transactions of an MQ while it is open
"""
