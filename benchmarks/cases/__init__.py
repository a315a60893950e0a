"""The benchmarks. Each module is one of them, with a function ``run``."""
