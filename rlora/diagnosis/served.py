"""What the sampler serves of the policy, and what ended a run."""

from math import sqrt

from rlora.diagnosis.evidence import Evidence
from rlora.diagnosis.finding import Finding

_DEVIATIONS, _LACK = 4.0, 0.05
_OF_PROOF = ("ProofError", "StaleAdapterError")


def part_served(evidence: Evidence) -> Finding | None:
    """The rollouts show only a part of the update, or the proof has ended the run."""
    if evidence.end.get("error") in _OF_PROOF:
        step = int(evidence.end.get("num_steps", 0))
        return Finding(
            name="part_served",
            what=f"the proof ended the run at step {step}: {evidence.end['message']}",
            remedy="Do not trust this engine with this model: try --sampler.kind torch, another version of vLLM, or "
            "fewer layers (--lora.layers attention), and go on with the same command.",
            since=step,
        )
    seen = [
        (int(row["step"]), row["proof/rollouts_served_fraction"] - 1, row["proof/rollouts_deviations"])
        for row in evidence.recent
        if row.get("proof/rollouts_deviations", 0.0) != 0 and row.get("proof/rollouts_served_fraction", 1.0) != 1
    ]
    if not seen:
        return None
    weights = [(deviations / lack) ** 2 for _, lack, deviations in seen]  # one over the squared standard errors
    total = sum(weights)
    lack = sum(weight * lack for weight, (_, lack, _) in zip(weights, seen, strict=True)) / total
    if abs(lack) * sqrt(total) < _DEVIATIONS or abs(lack) < _LACK:
        return None
    return Finding(
        name="part_served",
        what=f"the sampler serves {1 + lack:.2f} of the update since step {seen[0][0]}: over {len(seen)} steps that is "
        f"{abs(lack) * sqrt(total):.1f} standard errors from 1.",
        remedy="Do not trust this engine with this model: try --sampler.kind torch, another version of vLLM, or fewer "
        "layers (--lora.layers attention).",
        since=seen[0][0],
    )


def ended(evidence: Evidence) -> Finding | None:
    """An error has ended the run before its last step."""
    if not evidence.end or evidence.end.get("error") in _OF_PROOF:
        return None
    step = int(evidence.end.get("num_steps", 0))
    return Finding(
        name="ended",
        what=f"{evidence.end['error']} ended the run at step {step}: {evidence.end['message']}",
        remedy="Mend what the message names and give the same command again: it goes on from the last checkpoint.",
        since=step,
    )
