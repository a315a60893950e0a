"""What people and programs look at: plain values, made by the operations.

descriptions  topics, groups, members, lag, parked messages
diagnosis     why a group waits, and what to do
doctor        what is wrong with a database, and what to do
"""
