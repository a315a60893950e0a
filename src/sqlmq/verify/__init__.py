"""Whether a queue keeps its promises, found out by running it under faults and judging what its clients saw.

history      what happened, as lines of JSON: the format, written by many processes, read by the judge
"""
