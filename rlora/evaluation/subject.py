"""What is evaluated: the newest policy of a run, an adapter's folder, or a model alone."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlora.config import from_json, to_json
from rlora.errors import AdapterError, ConfigError, ModelError, RunDirError
from rlora.evaluation.config import EvalConfig
from rlora.full.weights import WEIGHTS_FILE
from rlora.lora.config import LoraConfig
from rlora.lora.peft.foreign import stored_shape
from rlora.lora.peft.peft_format import CONFIG_FILE, TENSOR_FILE
from rlora.model.identity import base_digests
from rlora.model.sources import ModelConfig, model_title
from rlora.store.origin import date_of, inputs_of_run, is_supervised, other_base, refuse_other_base, version_of
from rlora.store.run_dir import read_json
from rlora.system.screen import say
from rlora.tasks import DataConfig, Task, task
from rlora.tasks.data import OWN
from rlora.tasks.files import is_own
from rlora.tasks.prompts import PromptConfig, today


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A base model with or without a policy (`version` of it), and how a run put its questions.

    The policy is an `adapter` of the shape `lora`, or a model folder, `weights`, where every weight was trained. `data`
    is what the run trained on, None where there is no run; `instruction` replaces every other. `trained_base` holds the
    digests of the base that the run states, `base` those of the one that is here.
    """

    model: ModelConfig
    lora: LoraConfig
    prompt: PromptConfig
    adapter: Path | None = None
    weights: Path | None = None
    version: int = 0
    data: DataConfig | None = None
    instruction: str | None = None
    name: str = ""
    trained_base: Mapping[str, str] = field(default_factory=dict)
    base: Mapping[str, str] = field(default_factory=dict)

    @property
    def arms(self) -> tuple[str, ...]:
        """What can be scored: "policy" and "base", or the base alone."""
        return ("base",) if self.policy_file is None else ("policy", "base")

    @property
    def policy_file(self) -> Path | None:
        """The file of the policy's numbers, None where the base alone is meant."""
        if self.weights is not None:
            return self.weights / WEIGHTS_FILE
        return None if self.adapter is None else self.adapter / TENSOR_FILE

    @property
    def adapters(self) -> LoraConfig | None:
        """The shape of the adapters that an engine is built for; None where the policy is all weights."""
        return self.lora if self.weights is None else None

    @property
    def trained_on(self) -> str:
        """The run's data set by name, "" where there is no run."""
        return "" if self.data is None else self.data.task_name

    def prompt_for(self, benchmark: str) -> PromptConfig:
        """Return how the questions of a benchmark are put.

        A run's own instruction goes with tasks that say the same by default as the one it was trained on.
        """
        if self.instruction is not None:
            return replace(self.prompt, instruction=self.instruction)
        own = task(OWN if is_own(benchmark) else benchmark)
        trained_on = None if self.data is None else known_task(self.trained_on)
        is_same = trained_on is not None and trained_on.instruction == own.instruction
        return self.prompt if is_same else replace(self.prompt, instruction=None)

    def describe(self) -> dict[str, Any]:
        """Return what is recorded beside a score, the policy by a digest of its numbers."""
        digest = None
        if self.policy_file is not None:
            with self.policy_file.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        weights = {} if self.weights is None else {"weights_sha256": digest}
        return {
            "model": to_json(self.model),
            "model_title": model_title(self.model),
            "base": dict(self.base),
            "lora": None if self.adapter is None else to_json(self.lora),
            "adapter_sha256": None if self.adapter is None else digest,
            **weights,
            "version": self.version,
            "prompt": to_json(self.prompt),
            "trained_on": self.trained_on,
        }


def known_task(name: str) -> Task | None:
    """Return the task that a run was trained on; None where it is a user's own and its module is not here."""
    try:
        return task(name)
    except ConfigError:
        return None


def resolve(config: EvalConfig) -> Subject:
    """Return what the configuration asks to evaluate.

    Raises ConfigError when it names nothing or contradicts itself, RunDirError or AdapterError for a folder that does
    not hold what it should.
    """
    if config.run is not None:
        found = _of_run(Path(config.run), config)
    elif config.adapter is not None:
        found = _of_adapter(Path(config.adapter), config)
    elif config.model is not None:
        found = Subject(
            model=_model(config, config.model),
            lora=LoraConfig(),
            prompt=PromptConfig(),
            name=_slug(config.model),
        )
    else:
        raise ConfigError("say what to evaluate: --run RUN, --adapter FOLDER, or --model NAME.")
    prompt = replace(
        found.prompt,
        template=config.template or found.prompt.template,
        enable_thinking=found.prompt.enable_thinking if config.enable_thinking is None else config.enable_thinking,
    )
    return replace(found, prompt=prompt, instruction=config.instruction)


def dated(subject: Subject, config: EvalConfig, stored: Path) -> Subject:
    """Return the subject with the day that chat templates write: the run's, or that on which the evaluation began, of
    which `stored` is the configuration.
    """
    begun = read_json(stored).get("subject", {}).get("prompt", {}).get("date") if stored.is_file() else None
    day = subject.prompt.date or (date_of(Path(config.run)) if config.run is not None else begun or today())
    return replace(subject, prompt=replace(subject.prompt, date=day))


def identified(subject: Subject, folder: Path) -> Subject:
    """Return the subject with the digests of its base, the model in `folder`; a doubtful one is said.

    Raises RunDirError or AdapterError where run or adapter were trained on another base.
    """
    base = base_digests(folder)
    refuse_other_base(subject.trained_base, base, whose="the run", name=subject.model.name)
    policy = subject.adapter or subject.weights
    if policy is not None and (warning := other_base(policy, subject.model.name, base)):
        say(f"Warning: {warning}")
    return replace(subject, base=base)


def _of_run(run: Path, config: EvalConfig) -> Subject:
    if not (run / "config.json").is_file():
        raise RunDirError(f"{run} is not a run directory: it holds no config.json.")
    stored = read_json(run / "config.json")
    model = from_json(ModelConfig, section(stored, "model", run))
    trained_base = inputs_of_run(run).get("base", {})
    if config.model is not None and trained_base:  # by another name, if it is the same model: `identified` looks
        model = replace(model, name=config.model)
    if config.model is not None and config.model != model.name:
        raise ConfigError(f"--model is {config.model!r}, but the run trained on {model.name!r}; leave --model out.")
    if stored.get("method") == "full":
        return replace(_of_full_run(run, config, stored, model), trained_base=trained_base)
    adapter = Path(config.adapter) if config.adapter is not None else run / "adapter"
    if not (adapter / CONFIG_FILE).is_file():
        raise AdapterError(f"{adapter} holds no adapter; has the run finished a step?")
    lora, _ = stored_shape(adapter)
    return Subject(
        model=replace(model, dtype=config.dtype or model.dtype, revision=config.revision or model.revision),
        lora=lora,
        prompt=from_json(PromptConfig, section(stored, "prompt", run)),
        adapter=adapter,
        version=version_of(adapter),
        data=_data(stored, run),
        name=_slug(run.name),
        trained_base=trained_base,
    )


def _of_full_run(run: Path, config: EvalConfig, stored: Mapping[str, Any], model: ModelConfig) -> Subject:
    weights = Path(config.adapter) if config.adapter is not None else run / "model"
    if not (weights / WEIGHTS_FILE).is_file():
        raise ModelError(f"{weights} holds no {WEIGHTS_FILE}; has the run written a checkpoint?")
    if config.dtype not in (None, model.dtype):
        raise ConfigError(
            f"--dtype is {config.dtype}, but the run trained weights of {model.dtype}; leave --dtype out."
        )
    return Subject(
        model=replace(model, revision=config.revision or model.revision),
        lora=LoraConfig(),
        prompt=from_json(PromptConfig, section(stored, "prompt", run)),
        weights=weights,
        version=version_of(weights),
        data=_data(stored, run),
        name=_slug(run.name),
    )


def _data(stored: Mapping[str, Any], run: Path) -> DataConfig | None:
    """Return what a run trained on; None of a supervised one, which knows no task."""
    return None if is_supervised(stored) else from_json(DataConfig, section(stored, "data", run))


def section(stored: Mapping[str, Any], name: str, run: Path) -> Mapping[str, Any]:
    """Return a section of a run's configuration; RunDirError where it is not there."""
    if not isinstance(stored.get(name), dict):
        raise RunDirError(f"{run / 'config.json'} has no section {name!r}. Is the run directory damaged?")
    return stored[name]


def _of_adapter(adapter: Path, config: EvalConfig) -> Subject:
    lora, base = stored_shape(adapter)
    name = config.model or base
    if not name:
        raise ConfigError(f"{adapter} does not name its base model; add --model NAME.")
    return Subject(
        model=_model(config, name),
        lora=lora,
        prompt=PromptConfig(),
        adapter=adapter,
        version=version_of(adapter),
        name=_slug(adapter.resolve().name),
    )


def _model(config: EvalConfig, name: str) -> ModelConfig:
    model = ModelConfig(name=name, revision=config.revision, trust_remote_code=config.trust_remote_code)
    return model if config.dtype is None else replace(model, dtype=config.dtype)


def _slug(name: str) -> str:
    return "".join(character if character.isalnum() or character in "-._" else "-" for character in name).strip("-.")
