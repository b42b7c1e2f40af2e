"""Teach a small model to add: rank 1, generated sums, held-out pairs.

    rlora train arithmetic                     (what `make quickstart` runs)
    rlora train arithmetic --preset gpu        (the same on one GPU, in larger micro-batches)
    rlora train arithmetic --preset toy        (random weights, torch sampler, seconds; for tests)

Hardware: two CPU cores, 5 GB. docs/figures.md states time and scores as measured.
"""

from dataclasses import replace

from rlora.evaluation.held_out import EvaluationConfig
from rlora.model.sources import BUNDLED, TOY, ModelConfig
from rlora.run_config import RunConfig
from rlora.sampler.base import SamplerConfig
from rlora.tasks import DataConfig
from rlora.train.batching import BatchConfig
from rlora.train.optimizer import OptimizerConfig
from rlora.types import SamplingParams

CPU = RunConfig(
    run_dir="runs/arithmetic",
    preset="cpu",
    data=DataConfig(name="arithmetic"),
    num_steps=28,
    advantage="standardized",  # rare right answers weigh more; docs/log.md
    consensus_penalty=0.5,  # "47 + 53 = 90", eight times of eight, would never be left; docs/log.md
    model=ModelConfig(name=BUNDLED),
    optimizer=OptimizerConfig(learning_rate=6e-4, schedule="linear", schedule_steps=40),
    sampling=SamplingParams(max_tokens=32),
    batch=BatchConfig(tokens_per_micro_batch=512),
    sampler=SamplerConfig(max_prompt_tokens=128),
    evaluation=EvaluationConfig(every=10),
)
GPU = replace(
    CPU,
    run_dir="runs/arithmetic-gpu",
    preset="gpu",
    batch=BatchConfig(tokens_per_micro_batch=16384, tokens_per_row=1024),
    sampler=SamplerConfig(kv_cache_gb=0, max_num_seqs=0, max_prompt_tokens=128),
)
TOY_PRESET = replace(
    CPU,
    run_dir="runs/toy",
    preset="toy",
    data=DataConfig(name="digits"),
    num_steps=4,
    num_threads=1,
    problems_per_step=4,
    samples_per_problem=16,
    model=ModelConfig(name=TOY, dtype="float32"),
    optimizer=OptimizerConfig(learning_rate=1e-2),
    sampling=SamplingParams(max_tokens=8),
    sampler=SamplerConfig(kind="torch", max_prompt_tokens=64),
    evaluation=EvaluationConfig(every=2, num_problems=0),
)
PRESETS = {"cpu": CPU, "gpu": GPU, "toy": TOY_PRESET}
