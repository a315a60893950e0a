"""What is looked for in a history, a family of anomalies in each module.

log_content   A1 to A6, A8, A9, B11: the log holds what was sent
ordering      A7, A10, A11, A12: its order agrees with time
cycles        cycles in a graph
delivery      B1 to B4: each message reached each group, in order, and again only for a reason
transactions  B12, and more about groups that read in transactions
positions     B5, B6, B8, B9: positions, lost owners, retention
effects       B7, B10: effects, and parked messages
liveness      L1 to L8: work goes on, and soon
"""
