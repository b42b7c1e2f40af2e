"""What is drawn of a run's metrics: one record a chart, so that a new chart is a line here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Row = Mapping[str, float]
Style = Literal["lines", "stack", "band"]
Axis = Literal["linear", "log"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A chart: `metrics` by the label that they have in it, drawn in a `style`; `factor` turns them into its `unit`.

    A stack adds its metrics up and is drawn of one run; of several runs lines of `compared`, a metric, stand in its
    place. A band is a line of the first metric between the second and the third.
    """

    name: str
    title: str
    help: str
    metrics: Mapping[str, str]
    unit: str = ""
    factor: float = 1.0
    style: Style = "lines"
    axis: Axis = "linear"
    compared: str | None = None
    is_share: bool = False
    colours: Sequence[str] = ()
    """Of its metrics in order; a report's own where there are none."""


_REWARD = Panel(
    name="reward",
    title="Reward",
    help="Mean reward of a step's rollouts, with its 95 % interval where its rollouts are kept.",
    metrics={"reward/mean": "training", "reward/low": "low", "reward/high": "high"},
    style="band",
)
_SECONDS = Panel(
    name="seconds",
    title="Seconds by phase",
    help="Where the time of an iteration goes.",
    metrics={f"seconds/{name}": name for name in ("sample", "verify", "train", "swap", "evaluate", "save")},
    unit="s",
    style="stack",
    compared="seconds/step",
)
_SHARED = (
    Panel(
        name="gradient",
        title="Gradient norm",
        help="Euclidean norm before clipping; a jump is a step that was too large.",
        metrics={"optimizer/grad_norm": "gradient"},
        axis="log",
    ),
    Panel(
        name="adapter",
        title="Norm of the policy's numbers",
        help="A starts random and B at zero, so it begins above zero and grows with the update.",
        metrics={"optimizer/adapter_norm": "policy"},
    ),
    Panel(
        name="rate",
        title="Step size",
        help="alpha x learning rate of B, comparable across ranks.",
        metrics={"optimizer/step_size": "step size"},
    ),
    _SECONDS,
    Panel(
        name="memory",
        title="Peak memory",
        help="Most memory that the process had resident so far.",
        metrics={"memory/peak_resident_bytes": "resident"},
        unit="GiB",
        factor=2.0**-30,
    ),
)
RL_PANELS: Sequence[Panel] = (
    _REWARD,
    Panel(
        name="held_out",
        title="Held-out score",
        help="Greedy score on problems that are not trained on, with its 95 % interval.",
        metrics={
            "evaluation/accuracy": "held-out",
            "evaluation/accuracy_low": "low",
            "evaluation/accuracy_high": "high",
        },
        unit="%",
        factor=100,
        style="band",
    ),
    Panel(
        name="groups",
        title="Groups with something to learn from",
        help="Only mixed groups have a gradient. All right: too easy. All wrong: too hard, or a format is refused.",
        metrics={
            "groups/mixed_share": "mixed",
            "groups/all_right_share": "all right",
            "groups/all_wrong_share": "all wrong",
        },
        unit="%",
        factor=100,
        style="stack",
        compared="groups/mixed_share",
        is_share=True,
        colours=("#0b6bcb", "#15803d", "#c2410c"),
    ),
    Panel(
        name="verdicts",
        title="Verdicts",
        help="What the judge said of the completions. Many without an answer: look at the format.",
        metrics={
            f"verdict/{name}_share": name.replace("_", " ")
            for name in ("correct", "wrong", "not_worked_out", "no_answer", "unparsed", "timeout", "truncated")
        },
        unit="%",
        factor=100,
        style="stack",
        compared="verdict/correct_share",
        is_share=True,
        colours=("#15803d", "#c2410c", "#a16207", "#7e22ce", "#be185d", "#0e7490", "#52606d"),
    ),
    Panel(
        name="agreement",
        title="Trainer against sampler",
        help="Difference of log-probabilities on the same tokens: mean, 99th percentile, and the KL (k3). It should be "
        "flat.",
        metrics={
            "agreement/mean_abs_logprob_difference": "mean",
            "agreement/p99_abs_logprob_difference": "p99",
            "agreement/kl_k3": "KL",
        },
        unit="nats",
        axis="log",
    ),
    Panel(
        name="entropy",
        title="Entropy",
        help="Of the next-token distribution. Towards zero the policy says one thing, and explores no more.",
        metrics={"policy/entropy": "entropy"},
        unit="nats",
    ),
    Panel(
        name="length",
        title="Length of completions",
        help="Mean and longest. Growth without reward is a warning.",
        metrics={"rollout/mean_tokens": "mean", "rollout/max_tokens": "longest"},
        unit="tokens",
    ),
    Panel(
        name="cut",
        title="Cut off and clipped",
        help="Completions that hit the token limit, which earn 0; tokens whose ratio the loss clipped.",
        metrics={"rollout/truncated_share": "cut off", "loss/clipped_share": "clipped"},
        unit="%",
        factor=100,
        is_share=True,
    ),
    *_SHARED,
    Panel(
        name="throughput",
        title="Tokens a second",
        help="Sampled tokens over the seconds of sampling, and over those of the whole step.",
        metrics={
            "throughput/sampled_tokens_per_second": "sampling",
            "throughput/tokens_per_second": "whole step",
        },
        unit="tokens/s",
    ),
    Panel(
        name="proof",
        title="Proof: the part of the update that is served",
        help="1 is all of it, 0 another version. By the canary against base and previous version, and by the rollouts.",
        metrics={
            "proof/rollouts_served_fraction": "rollouts",
            "proof/canary_served_fraction_base": "canary, from the base",
            "proof/canary_served_fraction_previous": "canary, from the previous",
        },
    ),
    Panel(
        name="information",
        title="Information",
        help="Bits that the rewards can have told so far for each number of the policy, which holds about two.",
        metrics={"information/bits_per_number": "bits a number"},
        unit="bits",
    ),
)
SUPERVISED_PANELS: Sequence[Panel] = (
    Panel(
        name="loss",
        title="Training loss",
        help="Cross-entropy of the trained tokens.",
        metrics={"loss/value": "training"},
        unit="nats",
    ),
    Panel(
        name="held_out",
        title="Held-out loss",
        help="Of examples that are not trained on, with its 95 % interval. It rises where training is too long.",
        metrics={"evaluation/loss": "held-out", "evaluation/loss_low": "low", "evaluation/loss_high": "high"},
        unit="nats",
        style="band",
    ),
    Panel(
        name="entropy",
        title="Entropy",
        help="Of the next-token distribution on trained tokens.",
        metrics={"policy/entropy": "entropy"},
        unit="nats",
    ),
    *_SHARED,
    Panel(
        name="throughput",
        title="Tokens a second",
        help="Trained tokens, and positions, over the seconds of training.",
        metrics={
            "throughput/trained_tokens_per_second": "trained tokens",
            "throughput/positions_per_second": "positions",
        },
        unit="tokens/s",
    ),
)


def columns_of(panel: Panel, rows: Sequence[Row]) -> dict[str, list[float]]:
    """Return the columns of a chart of one run: `step`, and each metric that some row has, NaN where one lacks it.

    Rows without the metric of a band are left out of it; what a row lacks of a stack is zero there.
    """
    names = [*panel.metrics, *filter(None, [panel.compared])]
    if panel.style == "band":
        rows = [row for row in rows if names[0] in row]
    else:
        names = [name for name in names if any(name in row for row in rows)]
    lacking = 0.0 if panel.style == "stack" else math.nan
    shown = {name: [_shown(row.get(name, lacking), panel) for row in rows] for name in names}
    return {"step": [row["step"] for row in rows], **shown}


def _shown(value: float, panel: Panel) -> float:
    return math.nan if panel.axis == "log" and value <= 0 else value * panel.factor
