"""What people and programs look at: plain values, made by the operations.

descriptions  topics, groups, members, lag, parked messages
problem       something wrong, and what to do
diagnosis     why a group waits: problems of one group
doctor        what is wrong with a database and its groups
"""
