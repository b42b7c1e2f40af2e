"""rlora: reinforcement-learning post-training where the policy is a low-rank adapter of about a megabyte.

The names below are the library (docs/library.md); each is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlora.cohort.cohort import Cohort as Cohort
    from rlora.cohort.fates import Rules as Rules
    from rlora.errors import RloraError as RloraError
    from rlora.evaluation.held_out import EvaluationConfig as EvaluationConfig
    from rlora.full.parameters import Full as Full
    from rlora.library import run as run
    from rlora.lora.config import LoraConfig as LoraConfig
    from rlora.lora.low_rank import LowRank as LowRank
    from rlora.lora.peft.peft_format import save_adapter as save_adapter
    from rlora.model.base import Base as Base
    from rlora.model.sources import ModelConfig as ModelConfig
    from rlora.model.sources import model_dir as model_dir
    from rlora.recipes import find_recipe as find_recipe
    from rlora.rewards import Judge as Judge
    from rlora.rewards import JudgeConfig as JudgeConfig
    from rlora.rewards import group_reward as group_reward
    from rlora.run_config import RunConfig as RunConfig
    from rlora.sampler.base import SamplerConfig as SamplerConfig
    from rlora.store.results import Results as Results
    from rlora.supervised.config import HeldOutConfig as HeldOutConfig
    from rlora.supervised.config import SupervisedConfig as SupervisedConfig
    from rlora.supervised.data import ConversationsConfig as ConversationsConfig
    from rlora.supervised.library import fine_tune as fine_tune
    from rlora.tasks import DataConfig as DataConfig
    from rlora.tasks.prompts import PromptConfig as PromptConfig
    from rlora.train.batching import BatchConfig as BatchConfig
    from rlora.train.batching import build_batch as build_batch
    from rlora.train.losses import LossConfig as LossConfig
    from rlora.train.optimizer import OptimizerConfig as OptimizerConfig
    from rlora.train.policy import Policy as Policy
    from rlora.train.trainer import Trainer as Trainer
    from rlora.types import Completion as Completion
    from rlora.types import Group as Group
    from rlora.types import Message as Message
    from rlora.types import Problem as Problem
    from rlora.types import Prompt as Prompt
    from rlora.types import Rollout as Rollout
    from rlora.types import Sample as Sample
    from rlora.types import SamplingParams as SamplingParams
    from rlora.types import StopReason as StopReason
    from rlora.types import Verdict as Verdict
    from rlora.types import VerdictKind as VerdictKind
    from rlora.verify import Verifier as Verifier


__version__ = "0.1.0"

_PLACES = {
    "rlora.cohort.cohort": ("Cohort",),
    "rlora.cohort.fates": ("Rules",),
    "rlora.errors": ("RloraError",),
    "rlora.evaluation.held_out": ("EvaluationConfig",),
    "rlora.full.parameters": ("Full",),
    "rlora.library": ("run",),
    "rlora.lora.config": ("LoraConfig",),
    "rlora.lora.low_rank": ("LowRank",),
    "rlora.lora.peft.peft_format": ("save_adapter",),
    "rlora.model.base": ("Base",),
    "rlora.model.sources": ("ModelConfig", "model_dir"),
    "rlora.recipes": ("find_recipe",),
    "rlora.rewards": ("Judge", "JudgeConfig", "group_reward"),
    "rlora.run_config": ("RunConfig",),
    "rlora.sampler.base": ("SamplerConfig",),
    "rlora.store.results": ("Results",),
    "rlora.supervised.config": ("HeldOutConfig", "SupervisedConfig"),
    "rlora.supervised.data": ("ConversationsConfig",),
    "rlora.supervised.library": ("fine_tune",),
    "rlora.tasks": ("DataConfig",),
    "rlora.tasks.prompts": ("PromptConfig",),
    "rlora.train.batching": ("BatchConfig", "build_batch"),
    "rlora.train.losses": ("LossConfig",),
    "rlora.train.optimizer": ("OptimizerConfig",),
    "rlora.train.policy": ("Policy",),
    "rlora.train.trainer": ("Trainer",),
    "rlora.types": (
        "Completion", "Group", "Message", "Problem", "Prompt", "Rollout", "Sample", "SamplingParams", "StopReason",
        "Verdict", "VerdictKind",
    ),
    "rlora.verify": ("Verifier",),
}  # fmt: skip
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the records alone cost nothing, PyTorch seconds."""
    if name not in _PLACE_OF:
        raise AttributeError(f"module 'rlora' has no attribute {name!r}")
    return getattr(import_module(_PLACE_OF[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted([*globals(), *_PLACE_OF])
