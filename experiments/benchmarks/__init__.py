"""How fast fedsim is, beside other ways to do the same work. Run `python -m experiments.benchmarks`."""
