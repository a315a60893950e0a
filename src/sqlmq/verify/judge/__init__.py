"""The judge: reads a history and finds what is wrong with it. It imports nothing of the library that it judges.

evidence  what is known of a run: operations, deliveries, faults, losses
collect   builds the evidence from a history
findings  the anomalies by name, and what was found
rules     the rules, a family of anomalies in each module
verdict   applies all rules and decides the outcome
"""
