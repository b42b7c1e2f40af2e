"""Evaluation on benchmarks with several samples a problem: what is scored, how, and where it is kept."""
