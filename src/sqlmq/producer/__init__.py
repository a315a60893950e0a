"""From `produce` to the log.

producer  `Producer`: checks messages and appends them, alone or with those of other threads
batcher   concurrent calls go together in one transaction
outbox    messages that are appended when the application's transaction commits
"""
