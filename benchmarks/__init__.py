"""Benchmarks: rates and ratios, measured side by side in one run. None of them is a test.

``suite`` measures: variants by turns, medians, ratios of rounds. ``databases`` provides what is measured on,
``workload`` the messages, ``limits`` what can be had by hand, ``targets`` what is wanted, ``report`` tables and JSON.
Each other module is one benchmark with a function ``run``; ``peers`` holds the other queues.
"""
