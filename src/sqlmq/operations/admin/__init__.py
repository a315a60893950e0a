"""The transactions behind what operators do.

topics      topics and groups: created, grown, described, deleted
reset       a group moved to other positions, under the locks of its claims
parked      parked messages: listed, retried, discarded, copied
monitoring  lag, members, and what a waiting group waits for
doctor      what the database says about itself, and how each group does
"""
