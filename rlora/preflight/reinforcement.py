"""The pre-flight of a run of reinforcement learning: a few of its problems, sampled as it would sample them."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rlora.advice import check_layers, memory_lines, plan_lines, recommended
from rlora.assemble import load_problems
from rlora.diagnosis import Finding
from rlora.diagnosis.finding import per_cent
from rlora.diagnosis.signal import LEAST_SIGNAL, signal_words, without_signal
from rlora.diagnosis.statistics import mean, share
from rlora.diagnosis.training import outside
from rlora.diagnosis.verdicts import asked_of, cut_off, doubted, refused, refused_examples
from rlora.errors import ConfigError
from rlora.evaluation.config import EvalConfig
from rlora.evaluation.engine import Benchmark, check_inputs, draw, engine_of, judge_of, open_sampler
from rlora.evaluation.subject import Subject
from rlora.model.sources import config_dir, empty_model, load_tokenizer, model_dir
from rlora.preflight.cost import cost_lines, disk_finding, seconds_of_training
from rlora.preflight.shown import asked, judged
from rlora.preflight.versions import version_findings, version_lines
from rlora.rewards import CORRECT, Judge, doubts_of, opened
from rlora.rollout import rollout_metrics
from rlora.run_config import RunConfig
from rlora.sampler.base import EngineSpec, Sampler
from rlora.sampler.build import build_sampler
from rlora.sampler.capabilities import check_gpu
from rlora.tasks import task
from rlora.tasks.prompts import PromptRenderer, today
from rlora.tasks.stream import ProblemStream
from rlora.text import wrapped
from rlora.types import Group, Problem, Sample, StopReason, VerdictKind
from rlora.verify import Verifier

_MUCH = 0.5  # of the base's completions, cut off or refused: what a policy may well unlearn by itself is less
_FEW_GROUPS_MORE = 0.25  # added to the least share of groups with signal, since few groups are sampled
_MOST_GOLDS = 500
_OF_ANSWERS = {"mathematics", "last_number", "number"}
MakeSampler = Callable[[EngineSpec], Sampler]


def check_run(
    config: RunConfig,
    findings: list[Finding],
    *,
    num_problems: int,
    gigabytes: float | None = None,
    make_sampler: MakeSampler = build_sampler,
) -> Iterator[str]:
    """Yield what a run would train, use, need and see, and add to `findings` what should be changed before.

    `num_problems` of its first problems are sampled by its own sampler; with 0 no weights are loaded. `gigabytes` is
    the card whose memory is planned, the one that is here where it is left out. Raises ConfigError or DataError for
    settings that no run can have.
    """
    config.check()
    folder = config_dir(config.model)
    check_layers(config, folder)
    model = empty_model(folder, config.model)
    yield from wrapped(plan_lines(config, model))
    found, rate = recommended(config, model)
    findings += [each for each in (outside(found, rate), *version_findings()) if each is not None]
    yield from wrapped(version_lines(config.sampler))
    yield from _memory(config, model, gigabytes, findings)
    if not num_problems:
        return
    try:
        check_gpu(config.sampler)
    except ConfigError as error:
        yield from wrapped([f"Nothing is sampled: {error}"])
        return
    yield from _sampled(config, findings, num_problems, make_sampler)


def _memory(config: RunConfig, model: Any, gigabytes: float | None, findings: list[Finding]) -> Iterator[str]:
    """Yield where the memory of a card would go: of the one that is named, else of the one that is here."""
    if gigabytes is None and torch.cuda.is_available():
        gigabytes = torch.cuda.mem_get_info()[1] / 2**30
    if gigabytes is None:
        return
    lines = list(memory_lines(config, model, gigabytes))
    yield from wrapped(lines)
    findings += [
        Finding(
            name="memory",
            what=f"the run does not fit on a GPU of {gigabytes:.0f} GB: {line.partition(': ')[2]}",
            remedy="Take --batch.recompute True, shorter completions (--sampling.max-tokens), or a smaller model.",
        )
        for line in lines
        if line.startswith("  does not fit: ")
    ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sampling:
    """What was sampled: the groups, and the seconds that drawing them took."""

    groups: Sequence[Group]
    seconds: float

    @property
    def num_tokens(self) -> int:
        """Tokens of all completions."""
        return sum(len(each.completion.token_ids) for group in self.groups for each in group.rollouts)


def _sampled(config: RunConfig, findings: list[Finding], num_problems: int, make_sampler: MakeSampler) -> Iterator[str]:
    """Yield what the run's sampler says to its first problems, how that is judged, and what the whole run takes."""
    train = load_problems(config).train
    chosen = ProblemStream(train, seed=config.order_seed).take(min(num_problems, len(train)))
    folder, asks = model_dir(config.model), _as_evaluation(config)
    own = task(config.data.task_name)
    prompt = config.prompt if config.prompt.date is not None else replace(config.prompt, date=today())
    renderer = PromptRenderer(load_tokenizer(folder, config.model), prompt, instruction=own.instruction)
    benchmark = Benchmark(name=config.data.task_name, task=own, problems=tuple(chosen), renderer=renderer)
    subject = Subject(
        model=config.model,
        lora=config.lora,
        prompt=prompt,
        adapter=None if config.init_adapter is None else Path(config.init_adapter),
    )
    check_inputs(asks, subject, folder, [benchmark])
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    policy = None if subject.policy_file is None else 0
    with Verifier(config.verifier) as verifier, opened(judge_of(asks, benchmark, verifier)) as judge:
        yield from wrapped(doubts_of(judge, train))
        findings += _of_golds(config, train)
        with open_sampler(asks, subject, folder, [benchmark], make_sampler) as served:
            engine = engine_of(asks, benchmark, served, judge)
            start = time.perf_counter()
            sampled = draw(asks, engine, chosen, policy=policy)
            seconds = time.perf_counter() - start
        found = Sampling(groups=engine.judge(sampled), seconds=seconds)
        yield from _one(benchmark, judge, found)
        if not found.groups:
            findings.append(_no_prompt(config, len(chosen)))
            return
        yield from wrapped(_counted(config, found, len(chosen)))
        findings += _of_samples(config, found)
    is_measured = not torch.cuda.is_available()  # where the engine holds the card's memory to the end of the process
    trained = seconds_of_training(config, folder, found.groups) if is_measured else None
    yield from wrapped(cost_lines(config, found.num_tokens, found.groups, found.seconds, trained))
    findings += disk_finding(config, found.groups)


def _as_evaluation(config: RunConfig) -> EvalConfig:
    """Return the evaluation that draws and judges as the run does."""
    return EvalConfig(
        preset=config.preset,
        model=config.model.name,
        reward=config.reward,
        worked_out=True,
        samples=config.samples_per_problem,
        temperature=config.sampling.temperature,
        top_p=config.sampling.top_p,
        max_tokens=config.sampling.max_tokens,
        seed=config.seed,
        num_threads=config.num_threads,
        sampler=replace(config.sampler, share_base="auto"),
        judge=config.judge,
        verifier=config.verifier,
    )


def _one(benchmark: Benchmark, judge: Judge, found: Sampling) -> Iterator[str]:
    """Yield one prompt, one completion and its verdict, whole."""
    for group in found.groups[:1]:
        yield from asked(benchmark, group.prompt)
        yield from judged(judge, Sample(problem=group.prompt.problem, completion=group.rollouts[0].completion))
        yield ""


def _counted(config: RunConfig, found: Sampling, num_asked: int) -> Iterator[str]:
    """Yield the shares that decide whether a run can learn, with their intervals."""
    values = rollout_metrics(found.groups, num_problems=num_asked)
    number, count = len(found.groups), round(values["rollout/num_completions"])
    mixed = share(sum(group.has_signal for group in found.groups), number)
    yield f"sampled: {number} problems x {config.samples_per_problem} completions, temperature " + (
        f"{config.sampling.temperature:g}, at most {config.sampling.max_tokens} tokens"
    )
    yield f"groups with rewards that differ, which are learned from: {mixed}"
    yield f"reward {values['reward/mean']:.3g}; {per_cent(values['rollout/truncated_share'])} cut off; " + (
        f"{values['rollout/mean_tokens']:.0f} tokens a completion"
    )
    kinds = Counter(rollout.verdict.kind for group in found.groups for rollout in group.rollouts)
    yield f"verdicts: {', '.join(f'{kinds[kind]} {kind}' for kind in VerdictKind if kinds[kind])} of {count}"
    if number < num_asked:
        yield f"{num_asked - number} prompts are longer than {config.sampler.max_prompt_tokens} tokens and left out"


def _of_samples(config: RunConfig, found: Sampling) -> Iterator[Finding]:
    """Yield what the samples say against the run, by intervals over groups."""
    groups, limit = found.groups, config.sampling.max_tokens
    cut = mean([_part(group, lambda one: one.completion.stop is StopReason.LENGTH) for group in groups])
    if cut.low > _MUCH:
        yield cut_off(cut, limit=limit)
    refuses = (VerdictKind.NO_ANSWER, VerdictKind.UNPARSED)
    unread = mean([_part(group, lambda one: one.verdict.kind in refuses) for group in groups])
    if unread.low > _MUCH:
        yield refused(unread, refused_examples(_as_stored(groups), _judge_name(config)))
    mixed = share(sum(group.has_signal for group in groups), len(groups))
    if config.advantage != "raw" and mixed.high < LEAST_SIGNAL + _FEW_GROUPS_MORE:
        right = sum(not group.has_signal and group.rollouts[0].verdict.is_correct for group in groups)
        wrong = sum(not group.has_signal for group in groups) - right
        yield without_signal(signal_words(mixed), right=right, wrong=wrong, number=len(groups))


def _part(group: Group, is_one: Callable[[Any], bool]) -> float:
    return sum(map(is_one, group.rollouts)) / len(group.rollouts)


def _as_stored(groups: Sequence[Group]) -> Iterator[dict[str, Any]]:
    """Yield rollouts as a run directory has them, as far as an example needs."""
    for group in groups:
        problem = group.prompt.problem
        for rollout in group.rollouts:
            yield {
                "question": problem.question,
                "gold": problem.answer,
                "text": rollout.completion.text,
                "verdict": rollout.verdict.kind,
                "reason": rollout.verdict.reason,
                "stop": rollout.completion.stop,
            }


def _judge_name(config: RunConfig) -> str | None:
    """Return the run's judge of answers by name, None where it has another one."""
    name = config.reward or CORRECT
    name = task(config.data.task_name).judge if name == CORRECT else name
    return name if name in _OF_ANSWERS else None


def _of_golds(config: RunConfig, problems: Sequence[Problem]) -> Iterator[Finding]:
    name = _judge_name(config)
    looked_at = problems[:: -(-len(problems) // _MOST_GOLDS) or 1]
    found = None if name is None else doubted(asked_of(looked_at), name)
    if found is not None:
        yield found


def _no_prompt(config: RunConfig, number: int) -> Finding:
    return Finding(
        name="prompts",
        what=f"none of {number} problems can be asked: their prompts are longer than "
        f"{config.sampler.max_prompt_tokens} tokens.",
        remedy="Raise --sampler.max-prompt-tokens.",
    )
