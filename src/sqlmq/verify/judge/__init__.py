"""The judge: reads a history, and says what is wrong with it. It knows nothing of the library that is judged.

evidence       invocations and completions, who sent and got what, what disturbed whom
findings       the anomalies by name, and what was found
log_content    A1 to A6, A8, A9, B11: is in the log what was sent?
ordering       A7, A10, A11, A12: does its order agree with time? (circles: those of a graph)
delivery       B1 to B4: did each message come to each group, in order, and again only for a reason?
transactions   B12, and more of groups that read in transactions, played through
positions      B5, B6, B8, B9: positions, lost owners, retention
effects        B7, B10: effects, and what was set aside
liveness       L1 to L8: does work go on, and soon?
verdict        all of it, put together
"""
