"""Build the parts of a run from its configuration, everything cheap and fallible first."""

import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rlora.errors import DataError, LayoutError
from rlora.lora.inject import adapter_shapes
from rlora.lora.peft_format import modules_of
from rlora.memory import recompute_layers
from rlora.models import empty_model, end_token_ids, gpu_room, load_tokenizer
from rlora.policy import Policy
from rlora.rollout import RolloutEngine
from rlora.run_config import RunConfig
from rlora.sampler.base import EngineSpec, Sampler
from rlora.sampler.proof import HotSwap
from rlora.seeding import derive_seed
from rlora.tasks import task
from rlora.tasks.overlap import drop_overlap
from rlora.tasks.prompts import PromptRenderer
from rlora.token_budget import TokenBudget, batch_memory
from rlora.trainer import Trainer
from rlora.types import Problem
from rlora.verify import Verifier
from rlora.warm_up import warm_up

_CANARY_CANDIDATES = 16  # training problems from whose prompts the canary is made


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """What the loop works with."""

    policy: Policy
    trainer: Trainer
    engine: RolloutEngine
    budget: TokenBudget
    hot_swap: HotSwap
    sampler: Sampler


@dataclass(frozen=True, slots=True, kw_only=True)
class Problems:
    """What a run trains on and is tested on, and what was left out of the training set because it is in the test."""

    train: tuple[Problem, ...]
    test: tuple[Problem, ...]
    overlap: tuple[Problem, ...]


def load_problems(config: RunConfig) -> Problems:
    """Return the problems of the run's data set; DataError when they cannot be had, or either split is empty."""
    read = task(config.data.task_name).read
    test = read("test", config.data)
    train, overlap = drop_overlap(read("train", config.data), test)
    if not train or not test:
        raise DataError(f"the data set {config.data.title} has {len(train)} training and {len(test)} test problems.")
    tested = test[: config.evaluation.num_problems or None]
    return Problems(train=tuple(train), test=tuple(tested), overlap=tuple(overlap))


def assemble(
    config: RunConfig,
    folder: Path,
    problems: Sequence[Problem],
    verifier: Verifier,
    make_sampler: Callable[[EngineSpec], Sampler],
    *,
    is_new: bool = True,
) -> Parts:
    """Load tokenizer, policy and sampler of the model in `folder`, and join them; the canary borrows its prompts.

    A run that goes on (`is_new` false) does not need its initial adapter any more.
    """
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    chosen = task(config.data.task_name)
    tokenizer = load_tokenizer(folder, config.model)
    renderer = PromptRenderer(tokenizer, config.prompt, instruction=chosen.instruction)
    spec = EngineSpec(
        folder=folder,
        model=config.model,
        lora=config.adapters and config.adapters.served,
        config=config.sampler,
        end_token_ids=end_token_ids(folder, tokenizer),
        target_modules=_target_modules(config, folder),
        max_length=config.sampler.max_prompt_tokens + max(config.sampling.max_tokens, config.evaluation.max_tokens),
        run_name=Path(config.run_dir).name,
    )
    shared = _shared_engine(spec, make_sampler) if config.sampler.shares_base else None
    with _closed_on_failure(shared):
        policy = Policy.load(
            folder,
            config.model,
            config.adapters,
            seeds=[derive_seed(config.seed, "policy", 0)],
            init_adapter=Path(config.init_adapter) if config.init_adapter and is_new else None,
            weights=None if shared is None else _base_weights(shared),
        )
        warm_up(policy)
        temperature = config.sampling.temperature
        trainer = Trainer(policy, config.optimizer, config.loss, temperature=temperature)
        budget, batch_bytes = _token_budget(config, folder, policy)
    if shared is None:
        sampler = make_sampler(replace(spec, batch_bytes=batch_bytes))
    else:
        sampler = shared
        sampler.restore_cache()
    engine = RolloutEngine(renderer, sampler, verifier, task=chosen, max_prompt_tokens=config.sampler.max_prompt_tokens)
    prompts = engine.render(problems[:_CANARY_CANDIDATES])
    if not prompts:
        raise DataError(
            f"the first {_CANARY_CANDIDATES} prompts are all longer than {config.sampler.max_prompt_tokens} tokens."
        )
    return Parts(
        policy=policy,
        trainer=trainer,
        engine=engine,
        budget=budget,
        hot_swap=HotSwap(
            policy,
            sampler,
            [prompt.token_ids for prompt in prompts],
            temperature=temperature,
            seed=config.seed,
            longest=config.sampler.max_prompt_tokens,
        ),
        sampler=sampler,
    )


def _target_modules(config: RunConfig, folder: Path) -> tuple[str, ...]:
    """Return the layers that the engine has to adapt, known from the model's shapes alone."""
    if config.adapters is None:
        return ()
    return tuple(modules_of(adapter_shapes(empty_model(folder, config.model), config.adapters)))


def _shared_engine(spec: EngineSpec, make_sampler: Callable[[EngineSpec], Sampler]) -> Sampler:
    """Start the engine before the trainer's model, which will compute with its weights; its cache gives way at once."""
    sampler = make_sampler(replace(spec, shares_base=True))
    sampler.free_cache()
    return sampler


@contextmanager
def _closed_on_failure(sampler: Sampler | None) -> Iterator[None]:
    """Free a sampler that nobody else knows of yet when the block fails."""
    try:
        yield
    except BaseException:
        if sampler is not None:
            sampler.close()
        raise


def _base_weights(sampler: Sampler) -> Mapping[str, torch.Tensor] | None:
    """Return the engine's weights for the trainer; None, said on stderr, where they are not known to be the same."""
    try:
        return sampler.base_weights()
    except LayoutError as error:
        print(f"The trainer loads a copy of the base of its own: {error}", file=sys.stderr)
        return None


def _token_budget(config: RunConfig, folder: Path, policy: Policy) -> tuple[TokenBudget, int]:
    """Return the budget of micro-batches, and the bytes that they take where the sampler's cache gets what they leave.

    Where the GPU's memory sizes that cache, micro-batches take at most half of what both share, or all of it where the
    cache has given way.
    """
    tokens, num_bytes = config.batch.tokens_per_micro_batch, 0
    has_shared_memory = config.sampler.resolved_kind == "vllm" and config.sampler.kv_cache_gb == 0
    if config.memory_budget is not None or has_shared_memory:
        longest = config.sampler.max_prompt_tokens + config.sampling.max_tokens
        memory = batch_memory(policy, row_tokens=longest, recompute=config.batch.recompute)
        if config.memory_budget is not None:
            tokens = memory.tokens(config.memory_budget)
        if has_shared_memory:
            room_bytes = _room_beside_the_engine() if config.sampler.shares_base else gpu_room(folder, config.model) / 2
            room = memory.tokens(room_bytes / 2**30)
            if room < tokens:
                print(f"The GPU's memory takes micro-batches of {room} tokens, not {tokens}.", file=sys.stderr)
            tokens = min(tokens, room)
            num_bytes = memory.of(tokens)
    if config.batch.recompute:  # after measuring, which has to see what every layer saves
        recompute_layers(policy.model)
    return TokenBudget(config.batch, tokens), num_bytes


def _room_beside_the_engine() -> int:
    """Return the bytes of the GPU that are free, less a tenth of the card for fragments, while the engine sleeps."""
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return free - total // 10
