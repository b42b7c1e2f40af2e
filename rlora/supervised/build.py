"""Build the parts of a supervised run from its configuration, everything cheap and fallible first."""

from collections.abc import Mapping
from pathlib import Path

from rlora.errors import CheckpointError
from rlora.inputs import check_init_adapter
from rlora.lora.inject import adapter_shapes
from rlora.model.base import Base
from rlora.model.limits import check_row
from rlora.model.sources import empty_model, load_tokenizer
from rlora.seeding import derive_seed
from rlora.state import Progress
from rlora.store.checkpoint import Checkpoint
from rlora.supervised.config import SupervisedConfig
from rlora.supervised.data import Examples, Rows, load_examples
from rlora.system.screen import say, stage
from rlora.tasks.chat import Chat
from rlora.tasks.examples import Encoder
from rlora.tracking.tally import Tally
from rlora.train.card import GIB
from rlora.train.losses import LossConfig
from rlora.train.memory_plan import Workload, fit_micro_batches
from rlora.train.policy import Policy
from rlora.train.token_budget import measured_batch_memory
from rlora.train.trainer import Trainer
from rlora.train.warm_up import warm_up

_LEAST_TOKENS = 128  # of a micro-batch, before layers are computed again


def read_examples(config: SupervisedConfig, folder: Path, *, given: tuple[Rows, Rows | None] | None = None) -> Examples:
    """Return the examples of a run for the model in `folder`, and say what was left out, cut or split.

    Raises ConfigError where the model's positions do not hold an example, or a template cannot be used, and DataError
    where nothing is left.
    """
    model = empty_model(folder, config.model)
    check_row(model.config, config.max_tokens, option="--max-tokens")
    encoder = Encoder(
        Chat(load_tokenizer(folder, config.model), config.prompt),
        max_tokens=config.max_tokens,
        num_rows=model.get_input_embeddings().num_embeddings,
    )
    with stage(f"Reading {config.data.title}"):
        examples = load_examples(
            config.data,
            encoder,
            max_tokens=config.max_tokens,
            given=given,
            instruction=config.prompt.instruction or "",
        )
    for line in examples.notes:
        say(line)
    return examples


def check_adapters(config: SupervisedConfig, folder: Path, base: Mapping[str, str], *, is_new: bool) -> None:
    """Raise ConfigError for layers that the model in `folder`, whose digests are `base`, does not have, and
    AdapterError for an adapter that a new run cannot start from.
    """
    if config.adapters is None:
        return
    model = empty_model(folder, config.model)
    adapter_shapes(model, config.adapters)
    if config.init_adapter is not None and is_new:
        check_init_adapter(Path(config.init_adapter), config.lora, config.model, model, base=base)


def make_trainer(config: SupervisedConfig, folder: Path, *, is_new: bool) -> Trainer:
    """Return the trainer of a policy on the model in `folder`; a new run's starts from its initial adapter.

    Raises OutOfMemoryError where the memory budget does not hold the longest row.
    """
    base = Base.load(folder, config.model)
    policy = Policy.on(
        base,
        config.adapters,
        seed=derive_seed(config.seed, "policy", 0),
        init_adapter=Path(config.init_adapter) if config.init_adapter and is_new else None,
    )
    warm_up(policy)
    trainer = Trainer(policy, config.optimizer, LossConfig(), config.batch, is_exact=config.exact)
    if config.memory_budget is not None:
        _fit(trainer, config, config.memory_budget)
    elif config.batch.recompute:
        base.recompute_above = 0
    return trainer


def _fit(trainer: Trainer, config: SupervisedConfig, gigabytes: float) -> None:
    """Let micro-batches be as large as so many GiB hold."""
    row = max(config.max_tokens, config.batch.tokens_per_row)
    plain, recomputed = measured_batch_memory(trainer.policy, row_tokens=row)
    workload = Workload(
        row_tokens=row,
        max_length=row,
        micro_batch_tokens=config.batch.tokens_per_micro_batch,
        num_sequences=0,
        num_completions=0,
        is_recomputed=config.batch.recompute,
        least_tokens=_LEAST_TOKENS,
    )
    fitting = fit_micro_batches(gigabytes * GIB, workload, plain=plain, recomputed=recomputed)
    trainer.budget.tokens, trainer.policy.base.recompute_above = fitting.tokens, fitting.recompute_above


def restored(
    config: SupervisedConfig, trainer: Trainer, examples: Examples, start: Checkpoint | None, *, is_branch: bool
) -> tuple[Progress, int]:
    """Put policy and optimizer where the checkpoint left them; return how far the run is, and the walk's position.

    Raises CheckpointError where the training examples are not those that the position counts in.
    """
    if start is None:
        return Progress(), 0
    is_same_set = start.problems == examples.digests["train"]
    if not is_same_set and not is_branch:
        raise CheckpointError(
            f"the training examples are not those that {config.run_dir} was trained on. Restore them, or start a new "
            "run with them by --branch NEW_DIR."
        )
    trainer.restore(slots=start.slots, theta_D=start.theta_D, optimizer=start.optimizer, version=start.step)
    progress = Progress(step=start.step, best=start.best, seconds=start.seconds)
    if not is_branch:
        trainer.budget.tokens = start.tokens_per_micro_batch
        if start.tally is not None:
            progress.tally = Tally(**start.tally)
    return progress, start.position if is_same_set else 0
