"""A run: processes that use the library while faults are injected.

run                 the phases of a run: faults, healing, draining, reading the final state
processes           the processes: started, killed, paused, ended, replaced
nemesis             injects the faults when they are due
sandbox             the schema or file that a run uses
recorder            records each operation before it starts and when it has ended
state_dump          reads the state of the database with its own SQL
payloads            messages with an id and a hash
application_tables  the application's rows beside the queue
roles               what each process does: produce, poll, run handlers, read in transactions, watch
"""
