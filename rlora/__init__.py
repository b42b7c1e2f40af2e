"""rlora: reinforcement-learning post-training where the policy is a low-rank adapter of about a megabyte."""

__version__ = "0.1.0"
