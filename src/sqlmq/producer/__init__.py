"""From ``produce`` to the log.

producer         ``Producer``: what programs call
batcher          concurrent calls go together in one transaction
core             ``ProducerCore``: checks and steps that ``Producer`` and ``AsyncProducer`` share
outbox           messages that are appended when the application's transaction commits
session_binding  which Connection carries that transaction, and whether a message can commit with it
"""
