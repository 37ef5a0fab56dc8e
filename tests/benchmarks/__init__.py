"""Speed, side by side in one run: each module is a benchmark, `python -m tests.benchmarks` runs them all."""
