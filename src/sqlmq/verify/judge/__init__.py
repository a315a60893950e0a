"""The judge: reads a history, and says what is wrong with it. It imports nothing of the library that is judged.

collect   the evidence, made from a history
evidence  what is known of a run: operations, deliveries, faults, losses
findings  the anomalies by name, and what was found
rules     what is looked for, a family of anomalies in each module
verdict   all rules together, and the result
"""
