"""One function is the work of one transaction, on a Connection. Nothing here begins, commits or waits.

produce      messages get their partitions and are appended to the log
staging      messages that are not in the log yet: delayed ones, and those that could not be numbered
consume      fetching from positions; committing under claims
membership   joining, assignment, releasing, leaving, heartbeats
transaction  a partition locked and read; the group's position moved in the same transaction
attempts     messages parked, counted, failed, done, each with the group's position
poll         what each of many waiting consumers would find, in two statements
notify       which topics to notify of
retention    where a partition starts, what is deleted, and which groups lose something
admin        what operators do
"""
