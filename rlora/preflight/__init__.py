"""Before an hour of a GPU is spent: what a run's own settings do with a few real problems, and what to change."""

from rlora.preflight.reinforcement import check_run
from rlora.preflight.supervised import check_supervised

__all__ = ["check_run", "check_supervised"]
