"""Values and pure decisions: no SQL, no clock, no thread.

message      `Message`, `ProducerResult`, `DelayedMessage`; rows of the log that become messages
config       what a user may set, with its default
validation   arguments are checked: type, range, form
partitioner  which partition a key goes to: murmur2, fnv1a, crc32, rotation
assignment   which partitions each member of a group takes and releases
positions    where a group starts, or is moved to
retry        how often a failed message is tried, when, and what happens after the last attempt
retention    what a topic keeps, what groups protect, what they lose
timing       deadlines; the times between polls and between heartbeats; leases
"""
