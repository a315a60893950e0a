"""`Consumer.run`: messages are handed to a handler by a pool of worker threads.

pool         the worker threads: started, watched, stopped
dispatcher   which message to handle next: a parked one that is due, else one from the log
attempts     one attempt: counted before it begins, its outcome recorded
failures     what happens to a message whose attempt has failed
executor     calls the handler, directly or in a transaction, and says how that ended
results      what a handler returned: unfinished work fails the attempt
parked_keys  the parked messages of one partition, by key
config       the options of `run`
signals      SIGINT and SIGTERM stop the run
"""
