"""Why a run does not learn, in words, and what to do: read from its directory alone, without a model."""

from rlora.diagnosis.diagnose import DISEASES, diagnose, health
from rlora.diagnosis.finding import Finding

__all__ = ["DISEASES", "Finding", "diagnose", "health"]
