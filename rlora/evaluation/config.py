"""The configuration of an evaluation, and its presets."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rlora.config import check_choices, to_json
from rlora.errors import ConfigError
from rlora.model.sources import BUNDLED, TOY, DtypeName
from rlora.rewards import CORRECT, JudgeConfig, RewardName, check_judge
from rlora.sampler.base import SamplerConfig
from rlora.tasks import task
from rlora.tasks.data import OWN
from rlora.tasks.files import check_own, is_own, own_title
from rlora.tasks.prompts import TemplateName
from rlora.types import MAX_TEMPERATURE, MIN_TEMPERATURE, SamplingParams
from rlora.verify import VerifierConfig

MAX_TOKENS, MAX_PROMPT_TOKENS = 8192, 2048
"""The lengths that are left at their defaults, and so give way to the model's positions (`defaults.fitted`)."""
OF_RUN = "run"
"""The preset beside --run: the run's sampler, temperature and lengths."""

# What may change between two evaluations into one folder: it moves no sample that is there already, or it is part of
# the description of what is evaluated, which is compared as well.
_FREE = {
    "preset", "run", "adapter", "model", "revision", "dtype", "trust_remote_code", "template", "enable_thinking",
    "benchmark", "data_dir", "limit", "samples", "base", "output", "completions_per_batch", "num_threads", "verifier",
    "verbose",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """What is evaluated, on which benchmarks, and how completions are drawn."""

    preset: str = "gpu"
    """Which set of defaults applies; fields given beside it override them."""
    run: str | None = None
    """Run directory: its newest policy is scored, with its model, prompts, sampler, temperature and lengths unless
    options say otherwise (--preset run, the default beside --run).
    """
    adapter: str | None = None
    """Folder of a LoRA adapter in PEFT's format; with --run, the one (or the model folder of a run with --method full)
    to score in place of its newest.
    """
    model: str | None = None
    """Base model: "bundled", a folder, or a name on the Hugging Face hub; the adapter's own when left out."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: DtypeName | None = None
    """Precision of the base: bfloat16, float16 or float32; the run's, or bfloat16, when left out."""
    trust_remote_code: bool = False
    """Run Python code that a model's repository ships; off unless you trust its authors."""
    benchmark: str = "aime2024,aime2025"
    """Data sets whose test split is scored, joined by commas; FILE.jsonl (.json, .csv, .tsv, .parquet),
    hub:NAME[SPLIT] and my_module:my_task are your own.
    """
    reward: RewardName = None
    """Who judges: mathematics, last_number, number, your own my_module:my_function, or a sum, as in training; each
    benchmark's own judge, correct, when left out, of a run that was rewarded by another too.
    """
    worked_out: bool = False
    """Count an answer that is less worked out than its gold as wrong, as training does: a formula of the question is
    one. Off, since benchmarks ask for the value.
    """
    data_dir: str | None = None
    """Folder of local data sets; $RLORA_DATA or ../shared/data when left out, and the hub when there is none."""
    question_field: str = "question"
    """Field of your own data that holds the question."""
    answer_field: str = "answer"
    """Field of your own data that holds the answer."""
    samples: int = 32
    """Completions of each problem, by the policy and by the base; more than are there draw what is missing."""
    temperature: float = 1.0
    """Temperature of sampling; 0 is greedy and gives one completion a problem."""
    top_p: float = 1.0
    """Share of the probability that is sampled from."""
    max_tokens: int = MAX_TOKENS
    """Tokens after which a completion is cut off; the default is what the run sampled, or what the model's positions
    leave of 8192.
    """
    stop: tuple[str, ...] = ()
    """Strings that end a completion, beside the end of text."""
    template: TemplateName | None = None
    """chat, plain or auto; the run's, or auto (chat where the model has a template), when left out."""
    instruction: str | None = None
    """Text after each question; when left out, the run's where it was trained with the same task, else the task's."""
    enable_thinking: bool | None = None
    """Ask the template of a thinking model to think; the run's, or no, when left out."""
    seed: int = 0
    """Completions derive from it, from the problem and from nothing else."""
    limit: int = 0
    """Problems of each benchmark, from the first on; 0 takes all."""
    base: bool = True
    """Score the base model beside the policy, on the same problems with the same seeds (--no-base: do not)."""
    output: str | None = None
    """Folder of samples and results; RUN/eval/vVERSION or evals/NAME when left out."""
    completions_per_batch: int = 512
    """Completions sampled at once and kept together: fewer are lost by a kill, more are faster."""
    num_threads: int | None = None
    """Threads of PyTorch on the CPU; all cores when left out."""
    verbose: bool = False
    """Let everything that libraries and processes of theirs write reach the screen, in place of log.txt."""
    sampler: SamplerConfig = field(
        default_factory=lambda: SamplerConfig(kv_cache_gb=0, max_num_seqs=0, max_prompt_tokens=MAX_PROMPT_TOKENS)
    )
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    verifier: VerifierConfig = field(default_factory=VerifierConfig)

    def check(self) -> None:
        """Raise ConfigError or MissingDependencyError for the first value that breaks a rule."""
        check_choices(self)
        self.sampler.check()
        if self.sampler.shares_base:
            raise ConfigError("sampler.share_base is 'on', and an evaluation trains nothing: leave it out.")
        for name in ("samples", "max_tokens", "completions_per_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.limit < 0:
            raise ConfigError(f"limit is {self.limit}; it must be at least 0, and 0 takes all problems.")
        if self.num_threads is not None and self.num_threads < 1:
            raise ConfigError(f"num_threads is {self.num_threads}; it must be at least 1.")
        if not (self.temperature == 0 or MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE):
            raise ConfigError(
                f"temperature is {self.temperature}; it must be 0, which is greedy, or from {MIN_TEMPERATURE} to "
                f"{MAX_TEMPERATURE:g}."
            )
        if self.temperature == 0 and self.samples > 1:
            raise ConfigError(f"greedy decoding gives one completion a problem, not {self.samples}: add --samples 1.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")
        self.judge.check()
        if not self.benchmarks:
            raise ConfigError("benchmark is empty; name a data set, as in --benchmark aime2024,math500.")
        names = [title_of(name) for name in self.benchmarks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"two benchmarks are called {twice[0]}. Name each once, and rename a file if need be.")
        for name in self.benchmarks:
            if is_own(name):
                check_own(name, f"the benchmark {name}")
            own = task(OWN if is_own(name) else name).judge
            check_judge(self.reward or CORRECT, own=own, config=self.judge)

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """The names, in order."""
        return tuple(name.strip() for name in self.benchmark.split(",") if name.strip())

    @property
    def sampling(self) -> SamplingParams:
        """How completions are drawn."""
        return SamplingParams(
            temperature=self.temperature, top_p=self.top_p, max_tokens=self.max_tokens, stop=self.stop
        )

    def identity(self) -> dict[str, Any]:
        """Return the fields that samples depend on: two evaluations may share a folder if these are equal."""
        values = bound(to_json(self))
        values["judge"] = {key: values["judge"][key] for key in ("failed_reward", "min_reward", "max_reward")}
        values["sampler"] = {key: values["sampler"][key] for key in ("kind", "max_prompt_tokens")}
        return values


def bound(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of an evaluation's fields, as JSON, that samples depend on."""
    return {key: value for key, value in values.items() if key not in _FREE}


def title_of(benchmark: str) -> str:
    """Return how a benchmark is called in the names of files."""
    return own_title(benchmark) if is_own(benchmark) else benchmark.replace(":", ".")


GPU = EvalConfig()
CPU = replace(
    GPU,
    preset="cpu",
    model=BUNDLED,
    samples=4,
    max_tokens=256,
    completions_per_batch=128,
    sampler=SamplerConfig(max_num_seqs=128, max_prompt_tokens=768),
)
TOY_PRESET = replace(
    CPU,
    preset="toy",
    model=TOY,
    dtype="float32",
    benchmark="digits",
    max_tokens=8,
    num_threads=1,
    completions_per_batch=16,
    sampler=SamplerConfig(kind="torch", max_prompt_tokens=400),
)
PRESETS = {"gpu": GPU, "cpu": CPU, "toy": TOY_PRESET}
