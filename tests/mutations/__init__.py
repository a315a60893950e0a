"""Mistakes made in the library on purpose, one at a time, to see which test notices each.

mutation    a mutation: exact replacements in source files, and the tests that most likely notice it
log         mutations of producing, numbering and reading
outbox      mutations of messages in an application's transaction, and of delayed messages
groups      mutations of claims, leases, positions and transactions
handling    mutations of attempts, parked messages and dead letters
trimming    mutations of retention
table       all of them, by name
trial       one mutation in a copy of the checkout, and the tests that run there

``python -m tests.mutations`` prints which test of which lane noticed each mutation.
"""
