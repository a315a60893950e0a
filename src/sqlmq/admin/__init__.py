"""What operators do: look, decide, repair.

admin   `Admin`: topics and groups, lag, resets, retention, delayed messages; why a group waits
parked  `Parked`: parked messages listed, retried, discarded, copied
tail    `Tail`: a topic watched without a group
health  the examination of the database behind `Admin.diagnose`
access  transactions of an MQ while it is open
"""
