"""A run: processes that use the library while faults happen.

run                 the phases of a run: live, heal, drain, dump
processes           the processes: started, killed, paused, ended, replaced
nemesis             the faults, and when they are due
sandbox             where a run keeps its queue
recorder            operations written down before they are tried and when they are over
state_dump          the state in the database, by statements of its own
payloads            what the messages hold: an id and a hash
application_tables  the application's own rows beside the queue
roles               what each process does: produce, poll, run handlers, read in transactions, watch
"""
