"""Build the parts of a run from its configuration, everything cheap and fallible first."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from rlora.advice import plan_on_paper, workload_of
from rlora.errors import DataError, LayoutError, OutOfMemoryError
from rlora.lora.inject import adapter_shapes
from rlora.lora.peft.peft_format import modules_of
from rlora.model.base import Base
from rlora.model.sources import empty_model, end_token_ids, load_tokenizer, model_title, num_weights
from rlora.model.tokens import num_bytes_of, said_text
from rlora.proof.hot_swap import HotSwap
from rlora.proof.peers import ALONE, Peers
from rlora.rewards import Judge
from rlora.rollout import RolloutEngine
from rlora.run_config import RunConfig
from rlora.sampler.base import EngineSpec, Sampler
from rlora.sampler.capabilities import capabilities_of
from rlora.seeding import derive_seed
from rlora.store.checkpoint import Checkpoint
from rlora.system.screen import say, stage
from rlora.tasks import task
from rlora.tasks.fields import check_problems
from rlora.tasks.overlap import drop_overlap
from rlora.tasks.prompts import PromptRenderer
from rlora.tasks.stream import fingerprint
from rlora.train.batch_memory import DecoderSizes
from rlora.train.card import Card
from rlora.train.memory_plan import MemoryPlan, MicroBatches, fit_micro_batches, plan_memory
from rlora.train.policy import Policy
from rlora.train.token_budget import measured_batch_memory
from rlora.train.trainer import Trainer
from rlora.train.warm_up import warm_up
from rlora.types import Problem

_CANARY_CANDIDATES = 16  # training problems from whose prompts the canary is made


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """What the loop works with."""

    policy: Policy
    trainer: Trainer
    engine: RolloutEngine
    hot_swap: HotSwap
    sampler: Sampler
    plan: MemoryPlan | MicroBatches | None
    num_bytes_V: np.ndarray  # of a text that a token spells, to show where in it tokens begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Problems:
    """What a run trains on and is tested on, and what was left out of the training set because it is in the test.

    `digests` are those of the whole sets, `train` and `test`.
    """

    train: tuple[Problem, ...]
    test: tuple[Problem, ...]
    overlap: tuple[Problem, ...]
    digests: Mapping[str, str]


def load_problems(config: RunConfig) -> Problems:
    """Return the problems of the run's data set; DataError when they cannot be had, or either split is empty."""
    read = task(config.data.task_name).read
    test = read("test", config.data)
    return split_problems(config, read("train", config.data), test)


def split_problems(config: RunConfig, train: Sequence[Problem], test: Sequence[Problem]) -> Problems:
    """Return what a run trains and is tested on, what is in both left out of the training.

    Raises DataError where either is empty, or a problem is not made of texts.
    """
    check_problems((*train, *test))
    train, overlap = drop_overlap(train, test)
    if not train or not test:
        raise DataError(f"the data set {config.data.title} has {len(train)} training and {len(test)} test problems.")
    tested = test[: config.evaluation.num_problems or None]
    digests = {"train": fingerprint(train), "test": fingerprint(test)}
    return Problems(train=tuple(train), test=tuple(tested), overlap=tuple(overlap), digests=digests)


def assemble(
    config: RunConfig,
    folder: Path,
    problems: Sequence[Problem],
    judge: Judge,
    make_sampler: Callable[[EngineSpec], Sampler],
    *,
    start: Checkpoint | None = None,
    base: Base | None = None,
    peers: Peers = ALONE,
) -> Parts:
    """Load tokenizer, policy and sampler of the model in `folder`, and join them; the canary borrows its prompts.

    A run that goes on from `start` does not need its initial adapter any more, and keeps the sizes of its engine. With
    `base` the policy is one of several on it, whose proofs are compared with those of its `peers`.
    """
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    chosen = task(config.data.task_name)
    tokenizer = load_tokenizer(folder, config.model)
    renderer = PromptRenderer(tokenizer, config.prompt, instruction=chosen.instruction)
    spec = _engine_spec(config, folder, end_token_ids(folder, tokenizer, renderer.turn_end_ids()))
    engine_sizes = {} if start is None else start.engine
    shared = _shared_engine(config, spec, make_sampler, engine_sizes) if config.sampler.shares_base else None
    loading = stage(f"Loading {model_title(config.model)}") if base is None else nullcontext()
    with _closed_on_failure(shared and shared.sampler), loading:
        base = base or Base.load(folder, config.model, weights=shared and shared.weights)
        trainer = _trainer(config, base, is_new=start is None)
        policy, sizes = trainer.policy, shared.sizes if shared else engine_sizes
        plan = plan_of(config, folder, policy, engine=sizes, is_shared=bool(shared))
        if plan is not None:
            trainer.budget.tokens, policy.base.recompute_above = plan.tokens, plan.recompute_above
        elif config.batch.recompute:
            policy.base.recompute_above = 0
    if shared is None:
        sampler = make_sampler(_with_sizes(spec, plan))
    else:
        sampler = shared.sampler
        sampler.restore_cache()
    engine = RolloutEngine(
        renderer,
        sampler,
        judge,
        max_prompt_tokens=config.sampler.max_prompt_tokens,
        num_tokens=policy.base.num_tokens,
        text_of=partial(said_text, tokenizer, end_token_ids=spec.end_token_ids),
    )
    prompts = engine.render(problems[:_CANARY_CANDIDATES]) or engine.render(problems)[:_CANARY_CANDIDATES]
    if not prompts:
        raise DataError(f"all prompts are longer than {config.sampler.max_prompt_tokens} tokens.")
    return Parts(
        policy=policy,
        trainer=trainer,
        engine=engine,
        hot_swap=HotSwap(
            policy,
            sampler,
            [prompt.token_ids for prompt in prompts],
            sampling=config.sampling,
            seed=config.seed,
            longest=config.sampler.max_prompt_tokens,
            frees_cache=config.sampler.shares_base,
            peers=peers,
        ),
        sampler=sampler,
        plan=plan,
        num_bytes_V=num_bytes_of(tokenizer),
    )


def _trainer(config: RunConfig, base: Base, *, is_new: bool) -> Trainer:
    """Return the trainer of a new policy, with what it computes by compiled; a new run's starts from its adapter."""
    policy = Policy.on(
        base,
        config.adapters,
        seed=derive_seed(config.seed, "policy", 0),
        init_adapter=Path(config.init_adapter) if config.init_adapter and is_new else None,
    )
    warm_up(policy)
    return Trainer(
        policy,
        config.optimizer,
        config.loss,
        config.batch,
        temperature=config.sampling.temperature,
        is_exact=config.sampler.exact,
    )


def plan_of(
    config: RunConfig,
    folder: Path,
    policy: Policy,
    *,
    engine: Mapping[str, int] = MappingProxyType({}),
    is_shared: bool = False,
) -> MemoryPlan | MicroBatches | None:
    """Return how memory is divided: all of a GPU that vLLM shares with the trainer, or what `memory_budget` allows for
    micro-batches; None where nothing bounds them.

    The sizes of the engine in `engine` are kept where they still fit; where they do not, it is said on stderr. With
    `is_shared` it runs already, its cache has given way, and the trainer computes with its weights.
    """
    is_shared_card = capabilities_of(config.sampler).is_planned and (
        torch.cuda.is_available() or config.sampler.kv_cache_gb == 0
    )
    if not is_shared_card and config.memory_budget is None:
        return None
    workload = workload_of(config)
    plain, recomputed = measured_batch_memory(policy, row_tokens=workload.row_tokens)
    if not is_shared_card:
        assert workload.batch_bytes is not None
        return fit_micro_batches(workload.batch_bytes, workload, plain=plain, recomputed=recomputed)
    model, card, itemsize = empty_model(folder, config.model), Card.present(), policy.dtype.itemsize
    plan = partial(
        plan_memory,
        sizes=DecoderSizes.of(model.config),
        batch_memory=(plain, recomputed),
        weight_bytes=num_weights(model) * itemsize,
        itemsize=itemsize,
        is_shared=is_shared,
        has_started=is_shared,
    )
    if engine:
        about_as_free = replace(card, free=card.free + card.total // 100)  # from start to start a little more or less
        try:
            return plan(about_as_free, workload=replace(workload, **engine))
        except OutOfMemoryError as error:
            say(f"The engine's sizes of the steps before do not fit here any more, so others are taken: {error}")
    return plan(card, workload=workload)


def _engine_spec(config: RunConfig, folder: Path, end_tokens: tuple[int, ...]) -> EngineSpec:
    """Return what the engine is built from; the layers to adapt are known from the model's shapes alone."""
    modules: Iterable[str] = ()
    if config.adapters is not None:
        modules = modules_of(adapter_shapes(empty_model(folder, config.model), config.adapters))
    return EngineSpec(
        folder=folder,
        model=config.model,
        lora=config.adapters and config.adapters.served,
        config=config.sampler,
        end_token_ids=end_tokens,
        target_modules=tuple(modules),
        max_length=config.sampler.max_prompt_tokens + max(config.sampling.max_tokens, config.evaluation.max_tokens),
        run_name=Path(config.run_dir).name,
    )


def _with_sizes(spec: EngineSpec, plan: MemoryPlan | MicroBatches | None) -> EngineSpec:
    if not isinstance(plan, MemoryPlan):
        return spec
    return replace(spec, cache_bytes=plan.cache, num_sequences=plan.num_sequences)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _SharedEngine:
    """An engine whose cache has given way, its weights for the trainer, and the sizes that it was started with."""

    sampler: Sampler
    weights: Mapping[str, torch.Tensor]
    sizes: Mapping[str, int]


def _shared_engine(
    config: RunConfig, spec: EngineSpec, make_sampler: Callable[[EngineSpec], Sampler], sizes: Mapping[str, int]
) -> _SharedEngine | None:
    """Start the engine before the trainer's model, which will compute with its weights; its cache gives way at once.

    None, said on stderr, where its weights are not known to be those that the trainer needs: both load their own then.
    """
    model = empty_model(spec.folder, config.model)
    plan = plan_on_paper(config, model, Card.present(), engine=sizes)
    sampler = make_sampler(replace(_with_sizes(spec, plan), shares_base=True))
    with _closed_on_failure(sampler):
        sampler.free_cache()
        try:
            return _SharedEngine(sampler=sampler, weights=sampler.base_weights(), sizes=plan.engine)
        except LayoutError as error:
            say(f"Trainer and engine each load their own copy of the base: {error}")
    sampler.close()
    return None


@contextmanager
def _closed_on_failure(sampler: Sampler | None) -> Iterator[None]:
    """Free a sampler that nobody else knows of yet when the block fails."""
    try:
        yield
    except BaseException:
        if sampler is not None:
            sampler.close()
        raise
