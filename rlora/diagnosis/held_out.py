"""Overfitting: the training goes on getting better, and the held-out score gets worse."""

from rlora.diagnosis.evidence import Evidence
from rlora.diagnosis.finding import Finding, per_cent
from rlora.diagnosis.statistics import change, mean, slope

_FEWEST = 4  # evaluations from the best one on, for a slope
_WORSE = 0.02  # relative rise of the held-out loss


def overfitting(evidence: Evidence) -> Finding | None:
    """The held-out score falls while what is trained on gets better."""
    has_losses = any("evaluation/loss" in row for row in evidence.rows)
    return _of_losses(evidence) if has_losses else _of_scores(evidence)


def _of_scores(evidence: Evidence) -> Finding | None:
    name, rows = "evaluation/accuracy", evidence.rows
    scored = [row for row in rows if name in row]
    if len(scored) < 2:
        return None
    best, last = max(scored, key=lambda row: row[name]), scored[-1]
    if last["evaluation/accuracy_high"] >= best["evaluation/accuracy_low"]:  # the ends of two intervals of 95 %
        return None
    step = int(best["step"])
    before = [row["reward/mean"] for row in rows if step - 5 <= row["step"] < step + 5]
    after = [row["reward/mean"] for row in rows[-10:]]
    if mean(after).mean <= mean(before).mean:  # that the score fell is shown; here the reward need only not fall too
        return None
    return Finding(
        name="overfitting",
        what=f"held-out problems are solved less since step {step}, while the reward rises: "
        f"{per_cent(best[name])} then, {per_cent(last[name])} at step {last['step']:.0f}, and the reward from "
        f"{per_cent(mean(before).mean)} to {per_cent(mean(after).mean)}.",
        remedy="Take adapter-best, which is of the best held-out score; train on more problems, for fewer steps "
        "(--num-steps), or nearer to the base (--loss.kl-coefficient 0.01).",
        since=step,
    )


def _of_losses(evidence: Evidence) -> Finding | None:
    """Compare the held-out losses from the best on by their slope: they are of the same examples, so that their common
    spread, which each one's interval holds, says nothing about the change.
    """
    name, rows = "evaluation/loss", evidence.rows
    scored = [row for row in rows if name in row]
    if len(scored) < _FEWEST:
        return None
    best, last = min(scored, key=lambda row: row[name]), scored[-1]
    later = [row for row in scored if row["step"] >= best["step"]]
    rise = slope([row["step"] for row in later], [row[name] for row in later])
    if len(later) < _FEWEST or rise.low <= 0 or last[name] < (1 + _WORSE) * best[name]:
        return None
    step = int(best["step"])
    before = [row["loss/value"] for row in rows if step - 5 <= row["step"] < step + 5]
    after = [row["loss/value"] for row in rows[-10:]]
    if change(before, after).high >= 0:
        return None
    return Finding(
        name="overfitting",
        what=f"the held-out loss rises since step {step}, while the trained one falls: from {best[name]:.3f} to "
        f"{last[name]:.3f} nats a token, the trained one from {mean(before).mean:.3f} to {mean(after).mean:.3f}.",
        remedy="Take adapter-best, which is of the least held-out loss; train for fewer epochs (--epochs), on more "
        "examples, at a lower --optimizer.learning-rate or --lora.rank.",
        since=step,
    )
