"""Judging completions: which text is the answer, whether it equals the gold, and why; see docs/verifier.md."""

from rlora.verify.equal import equal, matches
from rlora.verify.explain import Explanation
from rlora.verify.extract import extract
from rlora.verify.judging import JudgeRequest
from rlora.verify.pool import VerifierError
from rlora.verify.verifier import Verifier, VerifierConfig

__all__ = ["Explanation", "JudgeRequest", "Verifier", "VerifierConfig", "VerifierError", "equal", "extract", "matches"]
