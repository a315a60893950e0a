"""What operators do: look, decide, repair.

inspection  topics, groups, members and lag; why a group waits
parked      parked messages: listed, retried, discarded, copied
tail        a topic watched without a group
"""
