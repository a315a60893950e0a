"""Whether the judge can be believed: correct histories that it must accept, and wrong ones that it must catch.

simulator          correct histories, made at random by a queue in memory
simulated_members  the members of its groups
draft              a history that is being changed
edits              changes that break a promise, by name
log_edits          changes to what was sent, and to the log
delivery_edits     changes to what groups got, and to their positions
cases              what must be caught, by name
mutations          steps of the library replaced by wrong ones
mutation_runs      short runs of the library as it is and with mutations
"""
