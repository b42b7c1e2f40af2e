"""Build the parts of a run from its configuration, everything cheap and fallible first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rlora.advice import workload_of
from rlora.batch_memory import DecoderSizes
from rlora.errors import DataError
from rlora.lora.peft_format import served_modules
from rlora.memory_plan import Card, MemoryPlan, MicroBatches, fit_micro_batches, plan_memory
from rlora.models import empty_model, end_token_ids, load_tokenizer, num_weights
from rlora.policy import Policy
from rlora.rollout import RolloutEngine
from rlora.run_config import RunConfig
from rlora.sampler.base import EngineSpec, Sampler
from rlora.sampler.proof import HotSwap
from rlora.seeding import derive_seed
from rlora.tasks import task
from rlora.tasks.overlap import drop_overlap
from rlora.tasks.prompts import PromptRenderer
from rlora.token_budget import TokenBudget, measured_batch_memory
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
    plan: MemoryPlan | MicroBatches | None


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
    policy = Policy.load(
        folder,
        config.model,
        config.adapters,
        seeds=[derive_seed(config.seed, "policy", 0)],
        init_adapter=Path(config.init_adapter) if config.init_adapter and is_new else None,
    )
    warm_up(policy)
    temperature = config.sampling.temperature
    trainer = Trainer(policy, config.optimizer, config.loss, temperature=temperature)
    plan = plan_of(config, folder, policy)
    budget = TokenBudget(config.batch, config.batch.tokens_per_micro_batch if plan is None else plan.tokens)
    policy.recompute_above = (0 if config.batch.recompute else None) if plan is None else plan.recompute_above
    sampler = make_sampler(
        EngineSpec(
            folder=folder,
            model=config.model,
            lora=config.adapters and config.adapters.served,
            config=config.sampler,
            end_token_ids=end_token_ids(folder, tokenizer),
            target_modules=() if config.adapters is None else tuple(served_modules(policy.adapter())),
            max_length=config.sampler.max_prompt_tokens + max(config.sampling.max_tokens, config.evaluation.max_tokens),
            run_name=Path(config.run_dir).name,
            cache_bytes=plan.cache if isinstance(plan, MemoryPlan) else None,
            num_sequences=plan.num_sequences if isinstance(plan, MemoryPlan) else None,
        )
    )
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
        plan=plan,
    )


def plan_of(config: RunConfig, folder: Path, policy: Policy) -> MemoryPlan | MicroBatches | None:
    """Return how memory is divided: all of a GPU that vLLM shares with the trainer, or what `memory_budget` allows for
    micro-batches; None where nothing bounds them.
    """
    is_shared_card = config.sampler.resolved_kind == "vllm" and (
        torch.cuda.is_available() or config.sampler.kv_cache_gb == 0
    )
    if not is_shared_card and config.memory_budget is None:
        return None
    workload = workload_of(config)
    plain, recomputed = measured_batch_memory(policy, row_tokens=workload.row_tokens)
    if not is_shared_card:
        assert workload.batch_bytes is not None
        return fit_micro_batches(workload.batch_bytes, workload, plain=plain, recomputed=recomputed)
    model = empty_model(folder, config.model)
    return plan_memory(
        Card.present(),
        DecoderSizes.of(model.config),
        workload,
        batch_memory=(plain, recomputed),
        weight_bytes=num_weights(model) * policy.dtype.itemsize,
        itemsize=policy.dtype.itemsize,
    )
