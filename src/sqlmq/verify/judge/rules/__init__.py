"""The rules of the judge, a family of anomalies in each module.

log_content   A1 to A6, A8, A9, B11: the log contains what was sent
ordering      A7, A10, A11, A12: the order of the log agrees with time
cycles        cycles in a graph
delivery      B1 to B4: every message was delivered to every group, in order, and redelivered only for a reason
transactions  B12, and parts of B1, B4 and B6 for groups that read in transactions
positions     B5, B6, B8, B9: positions, commits of former owners, retention
effects       B7, B10: effects and parked messages
liveness      L1 to L8: work goes on in time
"""
