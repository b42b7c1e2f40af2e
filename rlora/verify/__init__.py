"""Judging completions: which text is the answer, whether it equals the gold, and why; see docs/verifier.md."""

from rlora.verify.comparison.equal import equal, matches
from rlora.verify.explain import Explanation
from rlora.verify.extraction.extract import extract
from rlora.verify.judging import JudgeRequest, is_prose
from rlora.verify.verifier import Verifier, VerifierConfig
from rlora.verify.workers.pool import VerifierError

__all__ = [
    "Explanation",
    "JudgeRequest",
    "Verifier",
    "VerifierConfig",
    "VerifierError",
    "equal",
    "extract",
    "is_prose",
    "matches",
]
