"""Judging completions: which text is the answer, whether it equals the gold, and why; see docs/verifier.md."""

from rlora.verify.equal import equal, matches
from rlora.verify.extract import extract
from rlora.verify.pool import VerifierError
from rlora.verify.verifier import JudgeRequest, Verifier, VerifierConfig

__all__ = ["JudgeRequest", "Verifier", "VerifierConfig", "VerifierError", "equal", "extract", "matches"]
