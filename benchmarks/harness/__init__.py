"""What the benchmarks share.

suite      measures variants in turns; medians, and ratios of rounds
databases  the databases that are measured
workload   the messages, and checks of results
limits     hand-written baselines: the fastest known form of each step, with the driver alone
targets    the ratios that we want
record     the results of a run, written to and read from JSON
report     tables on the terminal and pages
plots      plots as SVG files
crew       processes that work at the same time
counting   counts the statements of an engine
snapshot   another session that holds an old snapshot
"""
