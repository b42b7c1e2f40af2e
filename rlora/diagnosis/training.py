"""What the update does: its rate, whether it is seen by the sampler, and where it leads the policy."""

from collections.abc import Sequence
from math import exp, log

from rlora.config import from_json
from rlora.diagnosis.evidence import Evidence, Row
from rlora.diagnosis.finding import Finding, per_cent
from rlora.diagnosis.statistics import change, mean, thirds
from rlora.lora.config import LoraConfig
from rlora.lora.learning_rate import Recommendation, recommend, recommend_supervised

_OLD = 12  # steps below which no change is looked for
_UNSEEN = 16  # updates in a row that the sampler does not show
_UNCERTAIN = 3  # drawn tokens in doubt, below which a canary shows nothing anyway
_KL, _KL_GROWTH = 0.01, 2.0  # nats between trainer and sampler that bias an update; growth over a run
_COLLAPSED, _LONGER = 0.2, 1.5  # entropy that is left; growth of completions
_SOLVED, _LOST = 0.9, 0.5  # rewards at which a run is done, and what is left of one that is lost


def rate(evidence: Evidence) -> Finding | None:
    """The learning rate lies outside the window that is known for the model and the method."""
    found, used = _recommended(evidence), evidence.at("optimizer", "learning_rate")
    if found is None or not isinstance(used, int | float):
        return None
    return outside(found, used * (evidence.at("optimizer", "b_rate_ratio") or 1.0))


def outside(found: Recommendation, used: float) -> Finding | None:
    """Return the finding that a rate (that of B) lies outside a window; None inside."""
    warning = found.warning(used)
    if warning is None:
        return None
    return Finding(
        name="rate",
        what=warning,
        remedy=f"Start from --optimizer.learning-rate {found.rate:.1e}; `rlora check RECIPE` says where that is from.",
    )


def _recommended(evidence: Evidence) -> Recommendation | None:
    """Return the rate to start from, None of a run that does not state its base's sizes."""
    hidden, model_type = evidence.sizes.get("hidden_size"), evidence.sizes.get("model_type")
    lora, method = evidence.at("lora") or {}, evidence.at("method") or "lora"
    steps = evidence.at("num_steps")
    if not isinstance(hidden, int) or not isinstance(model_type, str) or not isinstance(steps, int):
        return None
    alpha = from_json(LoraConfig, lora).effective_alpha
    if evidence.is_supervised:
        return recommend_supervised(
            model_type=model_type, hidden_size=hidden, method=method, alpha=alpha, num_steps=steps
        )
    data = evidence.at("data") or {}
    return recommend(
        model_name=str(evidence.at("model", "name")),
        model_type=model_type,
        hidden_size=hidden,
        method=method,
        rank=int(lora.get("rank", 1)),
        alpha=alpha,
        num_steps=steps,
        data="jsonl" if data.get("train") else data.get("name"),
    )


def below_precision(evidence: Evidence) -> Finding | None:
    """Updates are made, and after many of them the sampler's tokens do not differ from the base's."""
    name = "proof/canary_is_decided_base"
    newest: list[Row] = []
    for row in reversed(evidence.rows):
        if name not in row or row.get("optimizer/is_empty_batch", 0.0):
            continue
        if row[name] > 0 or row.get("proof/canary_num_uncertain", 0.0) < _UNCERTAIN:
            break
        newest.append(row)
    if len(newest) < _UNSEEN:
        return None
    since = int(newest[-1]["step"])
    ratio = mean([row["proof/canary_ratio_base"] for row in newest]).mean
    return Finding(
        name="below_precision",
        what=f"the sampler does not show the policy since step {since}: after {len(newest)} updates its tokens are as "
        f"far from the base's as rounding is (ratio {ratio:.2g}, where 3 can be told apart).",
        remedy="Raise --optimizer.learning-rate into its window (`rlora check RECIPE`), or sample in a finer precision "
        "(--model.dtype float32, or float16 where the values allow it).",
        since=since,
    )


def kl_growing(evidence: Evidence) -> Finding | None:
    """Trainer and sampler drift apart, to where the ratio of their probabilities biases the update."""
    name = "agreement/kl_k3"
    values = [(int(row["step"]), row[name]) for row in evidence.rows if row.get(name, 0.0) > 0]
    if len(values) < _OLD:
        return None
    before, after = thirds([value for _, value in values])
    grown = change([log(value) for value in before], [log(value) for value in after])
    if grown.low < log(_KL_GROWTH) or mean(after).mean < _KL:
        return None
    since = next((step for step, value in values if value >= _KL), values[-1][0])
    return Finding(
        name="kl_growing",
        what=f"trainer and sampler drift apart since step {since}: their KL grew from {mean(before).mean:.1e} to "
        f"{mean(after).mean:.1e} nats a token, so that what is trained on is not what was sampled.",
        remedy="Compute the logits and the model finer (--model.head-dtype float32, --model.dtype float16), lower "
        "--optimizer.learning-rate, or cut the ratio off (--loss.name ppo).",
        since=since,
    )


def entropy_collapse(evidence: Evidence) -> Finding | None:
    """The policy has stopped to try anything else, and what it says earns no more than before."""
    rows = [row for row in evidence.rows if row.get("policy/entropy", 0.0) > 0 and "reward/mean" in row]
    if len(rows) < _OLD:
        return None
    entropies = [row["policy/entropy"] for row in rows]
    before, after = thirds([log(value) for value in entropies])
    fallen = change(before, after)
    if fallen.high > log(_COLLAPSED) or _has_risen(evidence.rows, at_most=_SOLVED):
        return None
    start = exp(mean(before[: max(2, len(before) // 2)]).mean)
    fallen_at = [int(row["step"]) for row in rows if row["policy/entropy"] < _COLLAPSED * start]
    since = fallen_at[0] if fallen_at else int(rows[-1]["step"])
    rewards = thirds([row["reward/mean"] for row in evidence.rows])
    return Finding(
        name="entropy_collapse",
        what=f"the policy says the same every time since step {since}: its entropy fell from {start:.2g} to "
        f"{exp(mean(after).mean):.2g} nats a token, and the reward did not rise ({_moved(rewards)}).",
        remedy="Go on from a step before with --branch NEW_DIR@STEP and a lower --optimizer.learning-rate, with "
        "--consensus-penalty 0.5, or with --loss.kl-coefficient 0.01.",
        since=since,
    )


def reward_fell(evidence: Evidence) -> Finding | None:
    """The reward was higher, and is lost."""
    words, measured = _measure(evidence.rows)
    size = len(measured) // 3
    if len(measured) < _OLD:
        return None
    first, middle, last = measured[:size], measured[size:-size], measured[-size:]
    best = max((first, middle), key=lambda part: mean(part).mean)
    fallen, was = change(best, last), mean(best).mean
    if was <= 0 or fallen.high >= 0 or mean(last).mean > _LOST * was:
        return None
    rows = [row for row in evidence.rows if "reward/mean" in row]
    step = int(rows[len(measured) - size]["step"])
    return Finding(
        name="reward_fell",
        what=f"{words} fell, and stays low since step {step}: {_moved((best, last))}.",
        remedy="Go on from a step before with --branch NEW_DIR@STEP and a lower --optimizer.learning-rate; "
        "adapter-best is of the best held-out score.",
        since=step,
    )


def length_without_reward(evidence: Evidence) -> Finding | None:
    """Completions grow longer, and no more of them are right."""
    name = "rollout/mean_tokens"
    values = [(int(row["step"]), row[name]) for row in evidence.rows if row.get(name, 0.0) > 0]
    if len(values) < _OLD:
        return None
    before, after = thirds([value for _, value in values])
    if change([log(value) for value in before], [log(value) for value in after]).low < log(_LONGER) or _has_risen(
        evidence.rows
    ):
        return None
    least = _LONGER * mean(before).mean
    since = next(step for step, value in values if value > least)
    words, measured = _measure(evidence.rows)
    return Finding(
        name="length_without_reward",
        what=f"completions grow longer and earn no more since step {since}: from {mean(before).mean:.0f} to "
        f"{mean(after).mean:.0f} tokens, with {words} {_moved(thirds(measured))}.",
        remedy="Look at what is said (`rlora check RUN --benchmark NAME`); take a cost of length into the reward "
        "(--reward correct=1.0 length=-0.001), leave cut-off completions out (--batch.mask-truncated True), or lower "
        "--optimizer.learning-rate.",
        since=since,
    )


def _measure(rows: Sequence[Row]) -> tuple[str, list[float]]:
    """Return what a run is for, of its steps: the part `correct` of a sum, else the reward."""
    name = "reward/correct_mean" if rows and "reward/correct_mean" in rows[-1] else "reward/mean"
    words = "right answers" if name == "reward/correct_mean" else "the reward"
    return words, [row[name] for row in rows if name in row]


def _has_risen(rows: Sequence[Row], *, at_most: float | None = None) -> bool:
    """Return whether the reward rose from the first third of a run to the last, or is above `at_most` anyway."""
    before, after = thirds(_measure(rows)[1])
    return change(before, after).low > 0 or (at_most is not None and mean(after).mean > at_most)


def _moved(parts: tuple[Sequence[float], Sequence[float]]) -> str:
    before, after = (mean(part).mean for part in parts)
    if max(abs(before), abs(after)) <= 1:
        return f"from {per_cent(before)} to {per_cent(after)}"
    return f"from {before:.3g} to {after:.3g}"
