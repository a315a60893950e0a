"""From the log to the application.

consumer           `Consumer`: what applications call
worker             `run`: worker threads, handlers, retries, parked messages
core               a consumer's state and its lock; what background threads call
transaction        `Transaction`: messages and effects in one transaction; waits, begins, ends
transaction_scope  the steps of such a transaction, each on a given connection
buffer             what is fetched and not delivered yet; what is in flight
coordinator        membership, assignment, lease and commits of one consumer
prefetcher         the thread that fetches the next messages while earlier ones are handled
partition          one assigned partition: fetched, in flight, done, committed
"""
