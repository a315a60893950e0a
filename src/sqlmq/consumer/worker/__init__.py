"""`Consumer.run`: messages are handed to a handler by a pool of worker threads.

pool         the worker threads: started, watched, stopped
dispatcher   which message to handle next: a parked one that is due, else one from the log
attempts     one attempt: counted before it begins, its outcome recorded
executor     calls the handler: directly, in a transaction, or in an event loop
parked_keys  the parked messages of one partition, by key
signals      SIGINT and SIGTERM stop the run
"""
