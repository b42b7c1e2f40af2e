"""The configuration of a training run: every field, its default, its help text and its rules."""

import math
from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

from rlora.config import check_choices
from rlora.errors import ConfigError
from rlora.evaluation.held_out import EvaluationConfig
from rlora.lora.config import LoraConfig
from rlora.lora.learning_rate import Method
from rlora.model.sources import ModelConfig
from rlora.rewards import CORRECT, JudgeConfig, RewardName, check_judge
from rlora.rollout import Collection
from rlora.sampler.base import SamplerConfig
from rlora.sampler.capabilities import check_servable, check_shareable
from rlora.store.checkpoint import CheckpointConfig
from rlora.store.rollouts import RolloutsConfig
from rlora.tasks import DataConfig, task
from rlora.tasks.prompts import PromptConfig
from rlora.tracking import TrackingConfig
from rlora.train.advantages import AdvantageName
from rlora.train.batching import BatchConfig
from rlora.train.losses import LossConfig
from rlora.train.optimizer import OptimizerConfig
from rlora.types import MAX_TEMPERATURE, MIN_TEMPERATURE, SamplingParams
from rlora.verify import VerifierConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """A training run. Every field can be set on the command line by its dotted name."""

    run_dir: str
    """Folder of the run: a new one, or one that this command started, which then goes on from its last checkpoint."""
    branch: str | None = None
    """Start a new run from a checkpoint of the one in --run-dir, which may then differ in all but model, method and
    adapter: NEW_DIR, NEW_DIR@STEP, or STEP (into RUN_DIR-from-STEP).
    """
    method: Method = "lora"
    """lora trains adapters on a frozen base; full trains every weight of the model, the baseline of comparisons. It
    wants a tenth of LoRA's rate or less.
    """
    preset: str = "gpu"
    """Which set of defaults applies; fields given beside it override them."""
    data: Annotated[DataConfig, tyro.conf.arg(name="")] = field(default_factory=DataConfig)
    reward: RewardName = None
    """Who rewards: mathematics (the answer must be marked), last_number (or be the last number of a text), number (the
    same, and worked out to a number), or your own my_module:my_function of (completion, problem) -> reward or (reward,
    reason); the data set's own judge, correct, when left out, which of your own files is mathematics. Several with
    weights are a sum: correct=1.0 format=0.2 length=-0.001 my_module:my_function=0.5.
    """
    num_steps: int = 100
    """Iterations: each samples, trains once, and hands the new policy to the sampler."""
    problems_per_step: int = 32
    """Problems of an iteration."""
    samples_per_problem: int = 8
    """Completions of each problem, compared with one another."""
    seed: int = 0
    """Everything random derives from it: adapters, order of problems, samples."""
    advantage: AdvantageName = "centered"
    """centered (reward minus the group's mean), standardized, leave_one_out, or raw (no baseline)."""
    consensus_penalty: float = 0.0
    """Push all rollouts of a group down by this advantage when three quarters of it give the same wrong answer; 0
    leaves the group out, since by its rewards it has no signal.
    """
    oversample: float = 1.0
    """Go on sampling further problems in place of groups without signal, until problems_per_step groups have one or
    this many times problems_per_step were sampled; 1 samples once.
    """
    curriculum: bool = False
    """Draw problems that were always or never solved less often, by the solve rates measured in this run; of use once
    a run comes by its problems again.
    """
    init_adapter: str | None = None
    """Folder of a PEFT adapter to start from; it must have the run's rank, scale and layers."""
    memory_budget: float | None = None
    """GiB that training a micro-batch may take beside the model: sizes --batch.tokens-per-micro-batch by measuring, at
    a run's start; going on, it keeps what it had. Out of memory, the tokens are halved in any case.
    """
    num_threads: int | None = None
    """Threads of PyTorch on the CPU; all cores when left out. vLLM, where it runs, sets its own."""
    stop_after_hours: float | None = None
    """End the run well after the step in which this many hours have passed."""
    stop_at_reward: float | None = None
    """End the run well after a step whose mean reward reaches this."""
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    sampling: SamplingParams = field(default_factory=SamplingParams)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    verifier: VerifierConfig = field(default_factory=VerifierConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    rollouts: RolloutsConfig = field(default_factory=RolloutsConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def check(self) -> None:
        """Raise ConfigError or MissingDependencyError for the first value that breaks a rule."""
        check_choices(self)
        for part in (
            self.data,
            self.model,
            self.lora,
            self.optimizer,
            self.loss,
            self.batch,
            self.prompt,
            self.sampler,
            self.judge,
            self.checkpoint,
            self.rollouts,
            self.evaluation,
            self.tracking,
        ):
            part.check()
        check_trained(
            method=self.method,
            lora=self.lora,
            optimizer=self.optimizer,
            init_adapter=self.init_adapter,
            num_threads=self.num_threads,
            memory_budget=self.memory_budget,
        )
        check_servable(self.adapters, self.sampler, self.model)
        check_shareable(self.adapters, self.sampler)
        check_judge(self.reward or CORRECT, own=task(self.data.task_name).judge, config=self.judge)
        if self.num_steps < 1 or self.problems_per_step < 1:
            raise ConfigError("num_steps and problems_per_step must be at least 1.")
        if not 1 <= self.oversample <= 100:
            raise ConfigError(
                f"oversample is {self.oversample}; it must be from 1 (off) to 100 times problems_per_step. Try 3."
            )
        if self.oversample > 1 and self.advantage == "raw":
            raise ConfigError("oversample looks for groups whose rewards differ; with --advantage raw all are trained.")
        if self.curriculum and self.samples_per_problem < 2:
            raise ConfigError("curriculum needs samples_per_problem of at least 2: one sample is never a mixed group.")
        if self.consensus_penalty < 0:
            raise ConfigError(f"consensus_penalty is {self.consensus_penalty}; it must be at least 0.")
        if self.samples_per_problem < (1 if self.advantage == "raw" else 2):
            raise ConfigError(
                f"samples_per_problem is {self.samples_per_problem}; a group of one has no baseline, so every "
                "advantage is 0. "
                "Take at least 2, or --advantage raw."
            )
        _check_sampling(self.sampling)

    @property
    def adapters(self) -> LoraConfig | None:
        """The shape of the adapters; None where every weight is trained."""
        return self.lora if self.method == "lora" else None

    @property
    def order_seed(self) -> int:
        """What the order of problems derives from."""
        return self.seed if self.data.seed is None else self.data.seed

    @property
    def collection(self) -> Collection:
        """How a step's groups are collected."""
        return Collection(
            num_problems=self.problems_per_step,
            num_samples=self.samples_per_problem,
            sampling=self.sampling,
            oversample=self.oversample,
            seed=self.seed,
        )

    @property
    def evaluated_sampling(self) -> SamplingParams:
        """How completions of an evaluation are drawn, but for their temperature."""
        return replace(self.sampling, max_tokens=self.evaluation.max_tokens or self.sampling.max_tokens)

    def resolved(self) -> "RunConfig":
        """Return the configuration with the defaults filled in that depend on the method."""
        return replace(self, checkpoint=self.checkpoint.resolved(is_full=self.method == "full"))


def check_trained(
    *,
    method: Method,
    lora: LoraConfig,
    optimizer: OptimizerConfig,
    init_adapter: str | None,
    num_threads: int | None,
    memory_budget: float | None,
) -> None:
    """Raise ConfigError for the first value that breaks a rule of all kinds of training."""
    if init_adapter is not None and lora.variant == "pissa":
        raise ConfigError("lora.variant is pissa, which starts from the model itself; leave --init-adapter out.")
    if num_threads is not None and num_threads < 1:
        raise ConfigError(f"num_threads is {num_threads}; it must be at least 1.")
    if memory_budget is not None and not (memory_budget > 0 and math.isfinite(memory_budget)):
        raise ConfigError(f"memory_budget is {memory_budget}; it must be above 0 GiB, or left out.")
    if method != "full":
        return
    if lora != LoraConfig():
        raise ConfigError("method is 'full', which has no adapters: leave the --lora options out.")
    if optimizer.b_rate_ratio != 1:
        raise ConfigError("method is 'full', which has no A and B: leave --optimizer.b-rate-ratio out.")
    if init_adapter is not None:
        raise ConfigError(
            "method is 'full', which has no adapter to start from: merge it (`rlora export --merge`) and give "
            "the merged model as --model.name."
        )


def _check_sampling(sampling: SamplingParams) -> None:
    if sampling.top_p != 1:
        raise ConfigError(
            f"sampling.top_p is {sampling.top_p}; training needs 1, since cutting the distribution biases the ratio "
            "between trainer and sampler."
        )
    if not (sampling.temperature == 0 or MIN_TEMPERATURE <= sampling.temperature <= MAX_TEMPERATURE):
        raise ConfigError(
            f"sampling.temperature is {sampling.temperature}; logits are divided by it: take one from "
            f"{MIN_TEMPERATURE} to {MAX_TEMPERATURE:g}."
        )
    if not sampling.temperature > 0:
        raise ConfigError(
            f"sampling.temperature is {sampling.temperature}; training needs more than 0: greedy samples are all equal."
        )
    if sampling.stop:
        raise ConfigError("sampling.stop is for evaluation: a policy trained with it never learns to stop by itself.")
    if sampling.max_tokens < 1:
        raise ConfigError(f"sampling.max_tokens is {sampling.max_tokens}; it must be at least 1.")
