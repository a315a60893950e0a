"""Whether the judge can be believed: correct histories that it must accept, and wrong ones that it must see through.

correct     histories of a queue that keeps its promises, made at random
members     the members of its groups
edits       changes to such a history, each of which breaks a promise
controls    what must be caught, by name: edits, and whatever else brings a wrong history about
"""
