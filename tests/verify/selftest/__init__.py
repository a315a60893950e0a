"""Tests of the judge: histories and libraries with a known mistake, which it must find.

cases              what the judge must find, by name
simulated_queue    a queue in memory that keeps every promise
simulated_members  the members of its groups
simulator          correct histories, made at random with that queue
draft              a history that is being edited
edits              edits that break one promise each, by name
log_edits          edits of what was sent, and of the log
delivery_edits     edits of what groups received, and of their positions
mutations          steps of the library, each replaced by a wrong one
mutation_runs      short runs of the library, unchanged and with each mutation

Run all of it with ``python -m tests.verify.selftest``.
"""
