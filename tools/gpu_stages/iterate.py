"""Whole iterations of the loop on a made model: seconds, memory and figures by phase, on this card or a smaller one."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpu_stages.card import smaller_card
from gpu_stages.exactness import bits
from gpu_stages.models import PEAK_FLOP, flop_per_position, random_model
from gpu_stages.profiling import profile_sampling
from gpu_stages.setting import assembled, planned_gib, problems, rewarded, run_config
from gpu_stages.stage import Clock, Context, digest, used_memory

FIGURES = {"iteration_s": 20.0, "swap_share": 0.03}  # at most, of 64 x 16 completions at 1.7B on an H100
_24_GB, _48_GB = 23.5, 44.4  # GiB of an RTX 4090 and an L40S


@dataclass(slots=True)
class RewardedEngine:
    """The run's engine, but for rewards, which random weights would never earn; it keeps what was sampled last."""

    engine: Any
    sampled: Sequence[Any] = field(default_factory=list)

    def sample(self, *args: Any, **kwargs: Any) -> Sequence[Any]:
        """Sample as the run's engine does."""
        self.sampled = self.engine.sample(*args, **kwargs)
        return self.sampled

    def judge(self, sampled: Sequence[Any]) -> list[Any]:
        """Judge as the run's engine does, and reward every third completion."""
        return rewarded(self.engine.judge(sampled))

    @property
    def completions(self) -> list[Any]:
        """The completions sampled last."""
        return [completion for group in self.sampled for completion in group.completions]


def of_1_7b(context: Context) -> None:
    """The named model of the GSM8K recipe; ends with bits and a profile, the first thing to know of a card."""
    iterate(context, "qwen3-1.7b", figures=FIGURES, is_first=True)


def of_1_7b_compiled(context: Context) -> None:
    """The same with compiled kernels, in a second process: step 0's samples are the first one's if seeds decide."""
    records = iterate(context, "qwen3-1.7b", figures=FIGURES, compiled="on")
    plain = [record for record in context.records("iterate-1.7b") if record.get("step") == 0]
    if plain:
        same = {part: value == records[0]["fingerprint"][part] for part, value in plain[-1]["fingerprint"].items()}
        context.say(same_as_iterate=same)


def of_8b(context: Context) -> None:
    """The shape of Qwen3-8B with DeepMath's lengths: 8 problems x 16 of at most 8,192 tokens, layers computed again."""
    iterate(context, "qwen3-8b", name="deepmath", iterations=1, recompute=True, problems_per_step=8)


def on_24_gb(context: Context) -> None:
    """The shape of Qwen3-1.7B where only an RTX 4090's memory is left."""
    iterate(context, "qwen3-1.7b", iterations=1, card_gib=_24_GB, problems_per_step=16)


def on_48_gb(context: Context) -> None:
    """The shape of Qwen3-8B where only an L40S' memory is left."""
    iterate(context, "qwen3-8b", iterations=1, card_gib=_48_GB, problems_per_step=16)


def shared_on_24_gb(context: Context) -> None:
    """The shape of Qwen3-8B on an RTX 4090's memory, with one copy of the base; rehearsed without sharing."""
    iterate(context, "qwen3-8b", iterations=2, card_gib=_24_GB, problems_per_step=16, is_shared=not context.is_tiny)


def full(context: Context) -> None:
    """Every weight trained and handed over, at Qwen3-0.6B's size."""
    iterate(context, "qwen3-0.6b", method="full", problems_per_step=16)


def iterate(
    context: Context,
    shape: str,
    *,
    name: str = "gsm8k",
    iterations: int = 2,
    card_gib: float | None = None,
    compiled: str = "off",
    recompute: bool = False,
    figures: dict[str, float] | None = None,
    is_first: bool = False,
    is_shared: bool = False,
    **changes: Any,
) -> list[dict[str, Any]]:
    """Run iterations of the recipe `name` as a run does, on a card of `card_gib`; say and return what they took."""
    from rlora.config import to_json
    from rlora.loop import train
    from rlora.resume import EXTENDS, MAY_CHANGE
    from rlora.state import Progress
    from rlora.store.run_dir import RunDir
    from rlora.system.interrupts import Interrupts
    from rlora.tasks.stream import ProblemStream

    folder = random_model(context, shape)
    config = run_config(context, folder, name, **changes)
    config = replace(
        config,
        run_dir=str(context.run_dir(context.stage)),
        num_steps=iterations,
        evaluation=replace(config.evaluation, every=0),
        model=replace(config.model, compile=compiled),
        batch=replace(config.batch, recompute=recompute or config.batch.recompute),
        sampler=replace(config.sampler, share_base="on" if is_shared else "off"),
    )
    records = []
    with (
        smaller_card(card_gib) as ballast,
        assembled(context, config, folder, ballast=ballast) as parts,
        closing(RunDir(Path(config.run_dir), to_json(config), may_change=MAY_CHANGE, extends=EXTENDS)) as run_dir,
    ):
        parts, log = replace(parts, engine=RewardedEngine(parts.engine)), ClockedLog(ballast)
        unsaved = _unsaved(
            config=config,
            parts=parts,
            stream=ProblemStream(problems(2 * config.problems_per_step), seed=0),
            progress=Progress(),
            test=(),
            folder=run_dir,
            log=log,
            interrupts=Interrupts(),
        )
        for metrics in train(unsaved):
            log.clock.begin("")
            record = _record(config, parts, metrics, log.clock)
            records.append(record | {"simulated_card_gib": card_gib, "ballast_bytes": ballast})
            context.say(**records[-1])
            log.clock = Clock(ballast)
        context.say(headline=_headline(records[-1], figures))
        if is_first:
            bits(context, parts, config)
            profile_sampling(context, parts, config)
    return records


class ClockedLog:
    """What the loop tells of its phases and steps, as a clock that measures the device in them."""

    def __init__(self, ballast: int):
        """Measure the first step."""
        self.clock, self.display = Clock(ballast), self

    def phase(self, name: str) -> None:
        """Measure a phase that begins."""
        self.clock.begin(name)

    def stage(self, title: str) -> AbstractContextManager[None]:
        """Measure nothing of a start."""
        return nullcontext()

    def say(self, line: str) -> None:
        """Keep nothing: the stage says what it measured."""

    def write(self, values: dict[str, float]) -> None:
        """Keep nothing."""

    def write_rollouts(self, step: int, groups: Sequence[Any]) -> None:
        """Keep nothing."""


def _unsaved(**parts: Any) -> Any:
    """Return a run that writes no checkpoints: its policy is thrown away."""
    from rlora.state import Run

    class UnsavedRun(Run):
        """A run whose checkpoints would cost more than they are worth here."""

        def save(self) -> None:
            """Write nothing."""

    return UnsavedRun(**parts)


def _record(config: Any, parts: Any, metrics: dict[str, float], clock: Clock) -> dict[str, Any]:
    """Return the record of an iteration."""
    completions = parts.engine.completions
    phases = {key.partition("/")[2]: value for key, value in metrics.items() if key.startswith("seconds/")}
    iteration_s = phases.pop("step")
    positions, train_s, count = metrics["batch/num_positions"], phases["train"], metrics["rollout/num_tokens"]
    flop = positions * flop_per_position(
        parts.policy.model.config, recompute=config.batch.recompute, is_full=config.method == "full"
    )
    return {
        "step": metrics["step"],
        "iteration_s": round(iteration_s, 3),
        "swap_share": round(phases["swap"] / iteration_s, 4),  # rollouts checked, swapped, proven
        "seconds": {phase: round(value, 3) for phase, value in phases.items()},
        "completions": len(completions),
        "tokens": count,
        "mean_tokens": round(metrics["rollout/mean_tokens"], 1),
        "sample_tokens_per_s": round(count / phases["sample"]),
        "positions": positions,
        "positions_per_s": round(positions / train_s),
        "mfu": round(flop / train_s / PEAK_FLOP, 4),
        "micro_batches": metrics["batch/num_micro_batches"],
        "tokens_allowed": metrics["batch/tokens_allowed"],
        "out_of_memory": metrics["batch/num_out_of_memory"],
        "k3": metrics["agreement/kl_k3"],
        "proof": {k.partition("/")[2]: round(v, 4) for k, v in metrics.items() if k.startswith("proof/")},
        "planned_gib": planned_gib(parts),
        "peak_gib": clock.peak_gib,
        **used_memory(),
        "fingerprint": {
            "tokens": digest([completion.token_ids for completion in completions]),
            "logprobs": digest([completion.logprobs for completion in completions]),
            "policy": digest(parts.policy.flat.theta_D.cpu().numpy().tobytes()),
        },
    }


def _headline(record: dict[str, Any], figures: dict[str, float] | None) -> str:
    """Return the last iteration's figures in a few words, each beside the most that it may be where that is set."""
    seconds, share = record["iteration_s"], record["swap_share"]
    words = [f"iteration {seconds:.2f} s", f"swap {share:.1%}"]
    if figures is not None:
        most = figures["iteration_s"], figures["swap_share"]
        words = [f"{words[0]} (at most {most[0]:g} on an H100)", f"{words[1]} (at most {most[1]:.0%})"]
    if record["peak_gib"]:
        words.append(f"peak {max(record['peak_gib'].values()):.1f} GiB")
    return ", ".join(words)
