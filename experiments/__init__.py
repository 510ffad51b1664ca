"""Studies and benchmarks, each with its command and the results that it gave."""
