"""Benchmarks: rates and ratios, measured side by side in one run. None of them is a test.

harness  measures variants in turns; databases, messages, hand-written baselines, targets, reports and plots
cases    the benchmarks: each module has a function ``run``
peers    the other queues that ours is compared with
"""
