"""The promises put to the test: a queue is run under faults, and what its clients saw is judged.

history    what happened, as lines of JSON: written by many processes, read by the judge
judge      what is wrong with a history; imports nothing of the library
report     what the judge says, as JSON, Markdown and JUnit XML
plan       what a run does, by a seed
databases  what a run has to know of databases by itself
workload   a run: processes with roles, and the nemesis that disturbs them
"""
