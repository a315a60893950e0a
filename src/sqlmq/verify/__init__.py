"""``sqlmq verify``: runs the queue under faults and judges what its clients saw.

history    what happened, as lines of JSON: written by many processes, read by the judge
judge      finds what is wrong with a history; imports nothing of the library
report     the verdict as JSON, Markdown and JUnit XML
plan       what a run does, chosen by a seed
databases  access to the database without the library's dialects
workload   a run: processes that produce and consume, and the nemesis that injects faults
"""
