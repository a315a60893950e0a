"""Whether a queue keeps its promises, found out by running it under faults and judging what its clients saw.

history      what happened, as lines of JSON: the format, written by many processes, read by the judge
judge        what is wrong with a history; knows nothing of the library
report       what the judge says, as JSON, Markdown and for JUnit's readers
selftest     wrong histories that the judge must see through
plan         what a run does, by a seed
workload     a run: lives play roles (producing, consuming, running, transacting, watching) and the nemesis disturbs them
sabotage     the library broken, one step at a time; trials are runs of it that the judge must see through
"""
