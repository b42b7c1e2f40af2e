"""The configuration of supervised fine-tuning: every field, its default, its help text and its rules."""

import math
from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

from rlora.config import check_choices
from rlora.errors import ConfigError
from rlora.lora.config import LoraConfig
from rlora.lora.learning_rate import Method
from rlora.model.sources import ModelConfig
from rlora.run_config import check_trained
from rlora.store.checkpoint import CheckpointConfig
from rlora.supervised.data import ConversationsConfig
from rlora.tasks.prompts import PromptConfig
from rlora.tracking import TrackingConfig
from rlora.train.batching import BatchConfig
from rlora.train.optimizer import OptimizerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutConfig:
    """What is scored, and when."""

    every: int = 50
    """Updates between evaluations on the held-out examples; 0 evaluates before the first and after the last alone."""
    num_examples: int = 200
    """Held-out examples that are scored, the first ones (0: all of them)."""

    def check(self) -> None:
        """Raise ConfigError for a value that breaks a rule."""
        if self.every < 0 or self.num_examples < 0:
            raise ConfigError("evaluation.every and evaluation.num_examples must be at least 0.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedConfig:
    """Supervised fine-tuning. Every field can be set on the command line by its dotted name."""

    run_dir: str
    """Folder of the run: a new one, or one that this command started, which then goes on from its last checkpoint."""
    branch: str | None = None
    """Start a new run from a checkpoint of the one in --run-dir, which may then differ in all but model, method and
    adapter: NEW_DIR, NEW_DIR@STEP, or STEP (into RUN_DIR-from-STEP).
    """
    method: Method = "lora"
    """lora trains adapters on a frozen base; full trains every weight of the model, at a tenth of LoRA's rate."""
    preset: str = "gpu"
    """Which set of defaults applies; fields given beside it override them."""
    data: Annotated[ConversationsConfig, tyro.conf.arg(name="")] = field(default_factory=ConversationsConfig)
    epochs: float = 1.0
    """Passes over the training examples, in an order of (seed, epoch)."""
    num_steps: int = 0
    """Updates; 0 takes as many as the epochs need."""
    examples_per_step: int = 32
    """Examples of an update."""
    max_tokens: int = 2048
    """Tokens of an example; longer ones are cut, and counted."""
    seed: int = 0
    """Everything random derives from it: adapters, order of examples."""
    init_adapter: str | None = None
    """Folder of a PEFT adapter to start from; it must have the run's rank, scale and layers."""
    memory_budget: float | None = None
    """GiB that training a micro-batch may take beside the model: sizes --batch.tokens-per-micro-batch by measuring, at
    a run's start; going on, it keeps what it had. Out of memory, the tokens are halved in any case.
    """
    num_threads: int | None = None
    """Threads of PyTorch on the CPU; all cores when left out."""
    stop_after_hours: float | None = None
    """End the run well after the update in which this many hours have passed."""
    exact: bool = False
    """Deterministic kernels on a GPU, so that runs repeat bit for bit there; on a CPU they do as they are."""
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: HeldOutConfig = field(default_factory=HeldOutConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def check(self) -> None:
        """Raise ConfigError or MissingDependencyError for the first value that breaks a rule."""
        check_choices(self)
        for part in (
            *(self.data, self.model, self.lora, self.optimizer, self.batch, self.prompt, self.checkpoint),
            *(self.evaluation, self.tracking),
        ):
            part.check()
        if not (self.epochs > 0 and math.isfinite(self.epochs)):
            raise ConfigError(f"epochs is {self.epochs}; it must be above 0. Try 1.")
        if self.num_steps < 0 or self.examples_per_step < 1:
            raise ConfigError("num_steps must be at least 0, and examples_per_step at least 1.")
        if self.max_tokens < 2:
            raise ConfigError(f"max_tokens is {self.max_tokens}; it must be at least 2: a prompt's and an answer's.")
        if self.optimizer.updates_per_batch > 1:
            raise ConfigError("optimizer.updates_per_batch is for sampled batches; raise --epochs instead.")
        if self.batch.mask_truncated:
            raise ConfigError("batch.mask_truncated is for completions that were sampled; leave it out.")
        check_trained(
            method=self.method,
            lora=self.lora,
            optimizer=self.optimizer,
            init_adapter=self.init_adapter,
            num_threads=self.num_threads,
            memory_budget=self.memory_budget,
        )

    @property
    def adapters(self) -> LoraConfig | None:
        """The shape of the adapters; None where every weight is trained."""
        return self.lora if self.method == "lora" else None

    @property
    def order_seed(self) -> int:
        """What the order of examples derives from."""
        return self.seed if self.data.seed is None else self.data.seed

    def resolved(self) -> "SupervisedConfig":
        """Return the configuration with the defaults filled in that depend on the method."""
        return replace(self, checkpoint=self.checkpoint.resolved(is_full=self.method == "full"))

    def with_updates(self, num_examples: int) -> "SupervisedConfig":
        """Return the configuration with the number of updates that `num_examples` training examples make.

        Raises ConfigError for a schedule that ends before the run does.
        """
        num_steps = self.num_steps or math.ceil(self.epochs * num_examples / self.examples_per_step)
        schedule, length = self.optimizer.schedule, self.optimizer.schedule_steps
        if schedule != "constant" and length < num_steps:
            raise ConfigError(
                f"optimizer.schedule is {schedule} over {length} updates, and the run has {num_steps}: from then on "
                f"the rate would be 0. Add --optimizer.schedule-steps {num_steps}."
            )
        return replace(self, num_steps=num_steps)
