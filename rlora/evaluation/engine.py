"""The engine of an evaluation: the model with its policy in the sampler, proven there before the first sample."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rlora.errors import ConfigError
from rlora.evaluation.config import EvalConfig
from rlora.evaluation.samples import SampleFile
from rlora.evaluation.subject import Subject
from rlora.full.weights import load_weights
from rlora.lora.inject import adapted_layers, adapter_shapes
from rlora.lora.peft.foreign import padded_tensors
from rlora.lora.peft.peft_format import modules_of
from rlora.model.limits import check_lengths
from rlora.model.sources import DTYPES, empty_model, end_token_ids, load_tokenizer, model_title, num_weights
from rlora.model.tokens import said_text
from rlora.proof.hot_swap import HotSwap
from rlora.rewards import CORRECT, Judge, open_judge
from rlora.rollout import RolloutEngine, Sampled
from rlora.sampler.base import EngineSpec, Sampler
from rlora.sampler.capabilities import capabilities_of, check_experts
from rlora.system.screen import stage
from rlora.tasks import Task
from rlora.tasks.prompts import PromptRenderer
from rlora.train.batch_memory import DecoderSizes
from rlora.train.card import Card
from rlora.train.memory_plan import plan_evaluation
from rlora.train.policy import Policy
from rlora.types import Group, Problem, digest_of
from rlora.verify import Verifier

_PROOF_PROMPTS = 16  # from which those of the proof are chosen


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Benchmark:
    """A benchmark's problems, its task, and how its questions are put to the model."""

    name: str
    task: Task
    problems: tuple[Problem, ...]
    renderer: PromptRenderer

    def prompt_digests(self) -> dict[str, int]:
        """Return a digest of the tokens of each problem's prompt, by id."""
        return {problem.id: digest_of(self.renderer.render(problem).token_ids) for problem in self.problems}


def load_renderer(folder: Path, subject: Subject, name: str, task: Task) -> PromptRenderer:
    """Return the renderer of a benchmark's questions."""
    tokenizer = load_tokenizer(folder, subject.model)
    return PromptRenderer(tokenizer, subject.prompt_for(name), instruction=task.instruction)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Served:
    """A sampler with the subject's policy, and what proves that it serves it; `swap` is None for a base alone."""

    sampler: Sampler
    end_token_ids: tuple[int, ...]
    proof: Mapping[str, float]
    swap: HotSwap | None
    holds_one: bool

    def prove(self, policy: int | None) -> None:
        """Prove anew what is served, the base (None) or the policy, before it is asked for, where an engine that holds
        all weights of one of the two changes between them. An adapter stays where it is beside the base.
        """
        if self.swap is not None and self.holds_one:
            self.swap.prove_served(policy)

    def check(self, groups: Sequence[Group], *, policy: int | None) -> None:
        """Check samples of the base (None) or the policy, as those of training are; what `HotSwap.check` raises."""
        if self.swap is not None:
            self.swap.check(groups, policy=policy)


@contextmanager
def open_sampler(
    config: EvalConfig,
    subject: Subject,
    folder: Path,
    benchmarks: Sequence[Benchmark],
    make_sampler: Callable[[EngineSpec], Sampler],
) -> Iterator[Served]:
    """Start the sampler with the subject's policy, prove that it serves it, and yield it with the proof's numbers.

    The trainer's copy of the policy stays, since samples are checked against it. Raises AdapterError or ModelError for
    a policy that does not fit, ProofError when something else is served.
    """
    max_length = config.sampler.max_prompt_tokens + config.max_tokens
    if subject.policy_file is not None and subject.adapters is not None:
        check_experts(adapter_shapes(empty_model(folder, subject.model), subject.adapters), config.sampler)
    policy = None
    if subject.policy_file is not None:
        with stage(f"Loading {model_title(subject.model)} and its policy"):
            policy = _load_policy(folder, subject)
    cache_bytes, num_sequences = _engine_room(config, subject, folder, max_length)
    ends = end_token_ids(folder, load_tokenizer(folder, subject.model), benchmarks[0].renderer.turn_end_ids())
    sampler = make_sampler(
        EngineSpec(
            folder=folder,
            model=subject.model,
            lora=subject.adapters,
            config=config.sampler,
            end_token_ids=ends,
            target_modules=_target_modules(folder, subject, policy),
            max_length=max_length,
            run_name="eval",
            cache_bytes=cache_bytes,
            num_sequences=num_sequences,
        )
    )
    try:
        proof: dict[str, float] = {}
        swap = None
        if policy is not None:
            problems = benchmarks[0].problems[:_PROOF_PROMPTS]
            prompts = [benchmarks[0].renderer.render(problem).token_ids for problem in problems]
            swap = HotSwap(policy, sampler, prompts, sampling=config.sampling, seed=config.seed)
            with stage("Proving that the sampler serves the policy"):
                proof = swap.swap()
        yield Served(sampler=sampler, end_token_ids=ends, proof=proof, swap=swap, holds_one=subject.weights is not None)
    finally:
        sampler.close()


def check_inputs(config: EvalConfig, subject: Subject, folder: Path, benchmarks: Sequence[Benchmark]) -> None:
    """Raise ConfigError for prompts that cannot be written, or lengths that the model cannot hold."""
    model = empty_model(folder, subject.model)
    longest = config.sampler.max_prompt_tokens
    check_lengths(model.config, prompt=longest, completion=config.max_tokens, option="--max-tokens")
    for benchmark in benchmarks:
        benchmark.renderer.check(benchmark.problems, num_rows=model.get_input_embeddings().num_embeddings)


def _engine_room(config: EvalConfig, subject: Subject, folder: Path, max_length: int) -> tuple[int | None, int | None]:
    """Return bytes of vLLM's cache and completions at once where the GPU's memory decides; else None, None."""
    if not capabilities_of(config.sampler).is_planned or config.sampler.kv_cache_gb > 0:
        return None, None
    card, model = Card.present(), empty_model(folder, subject.model)
    return plan_evaluation(
        card,
        DecoderSizes.of(model.config),
        max_length=max_length,
        num_sequences=config.sampler.max_num_seqs,
        num_completions=config.completions_per_batch,
        weight_bytes=num_weights(model) * DTYPES[subject.model.dtype].itemsize,
    )


def _load_policy(folder: Path, subject: Subject) -> Policy:
    policy = Policy.load(folder, subject.model, subject.adapters, seed=0)
    shapes = {slot.name: slot.shape for slot in policy.flat.slots}
    if subject.weights is not None:
        policy.flat.assign(load_weights(subject.weights, shapes))
        policy.refresh_served()
    else:
        assert subject.adapter is not None
        policy.flat.assign(padded_tensors(subject.adapter, subject.lora, shapes))
    policy.version = subject.version
    return policy


def _target_modules(folder: Path, subject: Subject, policy: Policy | None) -> tuple[str, ...]:
    if subject.adapters is None:
        return ()
    if policy is None:
        return tuple(_module_names(folder, subject))
    return tuple(modules_of(slot.name for slot in policy.flat.slots))


def _module_names(folder: Path, subject: Subject) -> list[str]:
    """Return the names of layers that an adapter could have, from the model's shape alone; the base needs no more."""
    model = empty_model(folder, subject.model)
    return sorted({name.rpartition(".")[2] for name in adapted_layers(model, "attention")})


def collect(
    config: EvalConfig,
    benchmark: Benchmark,
    samples: SampleFile,
    engine: RolloutEngine,
    served: Served,
    *,
    policy: int | None,
    after_batch: Callable[[int, int], None],
) -> None:
    """Draw, check, judge and keep the samples that are not there yet; `policy` None is the base.

    A request's seed derives from the problem and `config.seed` alone, so neither the batch nor a restart moves it, and
    base and policy draw with the same seeds. Samples that a problem has already are followed by what lacks.
    `after_batch` is told the problems and the tokens of each batch.
    """
    left: dict[int, list[Problem]] = defaultdict(list)
    for problem in benchmark.problems:
        if problem not in samples:
            left[samples.num_there(problem)].append(problem)
    for first, problems in left.items():
        if first and engine.sees_groups:
            raise ConfigError(
                f"{first} completions of each problem of {benchmark.name} were judged as a group, which "
                f"{config.samples - first} more cannot join; choose another --output."
            )
        size = max(1, config.completions_per_batch // (config.samples - first))
        for start in range(0, len(problems), size):
            batch = problems[start : start + size]
            groups = engine.judge(draw(config, engine, batch, policy=policy, first=first))
            served.check(groups, policy=policy)
            asked = {group.prompt.problem.id for group in groups}
            samples.append(groups, [problem for problem in batch if problem.id not in asked])
            after_batch(len(batch), sum(len(each.completion.token_ids) for group in groups for each in group.rollouts))


def draw(
    config: EvalConfig, engine: RolloutEngine, problems: Sequence[Problem], *, policy: int | None, first: int = 0
) -> list[Sampled]:
    """Return the completions of a benchmark's problems, a function of each problem and of `config.seed` alone; of each
    those from number `first` on.
    """
    return engine.sample(
        problems,
        config.sampling,
        num_samples=config.samples - first,
        first=first,
        seed=config.seed,
        key=("benchmark",),
        policy=policy,
        is_placed=False,
    )


def engine_of(config: EvalConfig, benchmark: Benchmark, served: Served, judge: Judge) -> RolloutEngine:
    """Return what renders, samples and judges a benchmark's problems."""
    return RolloutEngine(
        benchmark.renderer,
        served.sampler,
        judge,
        max_prompt_tokens=config.sampler.max_prompt_tokens,
        num_tokens=served.swap and served.swap.num_tokens,
        text_of=partial(said_text, benchmark.renderer.tokenizer, end_token_ids=served.end_token_ids),
    )


def judge_of(config: EvalConfig, benchmark: Benchmark, verifier: Verifier) -> Judge:
    """Return who judges a benchmark: whom the configuration names, else the benchmark's own."""
    return open_judge(
        config.reward or CORRECT,
        verifier,
        own=benchmark.task.judge,
        is_worked_out=config.worked_out,
        config=config.judge,
    )
