"""GSM8K with a rank-1 policy.

    rlora train gsm8k --model.name Qwen/Qwen3-1.7B-Base          (one GPU; defaults below)
    rlora train gsm8k --preset cpu                               (two CPU cores, the bundled 135M model)
    rlora train gsm8k --preset cpu-reason                        (the same, after `rlora train sft --preset cpu-reason`)
    rlora train gsm8k --preset toy                               (random weights, seconds; for tests)

Data: the hub's openai/gsm8k, or a folder with gsm8k/train.jsonl and gsm8k/test.jsonl named by --data-dir or
$RLORA_DATA.

The GPU defaults (rank 1, alpha 32, rate 6e-5, 64 problems x 16 samples of at most 1024 tokens) lie in the window that
public runs on 1.7B models found good; one step of them, with the bundled model, is all that ran on a GPU yet. The cpu
preset (32 problems x 16 direct answers of at most 32 tokens an iteration) takes 14 to 26 s an iteration and 4 GB; what
it reaches on the whole test set is in docs/results.md.
"""

from dataclasses import replace

from rlora.evaluation.held_out import EvaluationConfig
from rlora.model.sources import BUNDLED, TOY, ModelConfig
from rlora.run_config import RunConfig
from rlora.sampler.base import SamplerConfig
from rlora.tasks import DataConfig
from rlora.tasks.prompts import PromptConfig
from rlora.train.batching import BatchConfig
from rlora.train.optimizer import OptimizerConfig
from rlora.types import SamplingParams

GPU = RunConfig(
    run_dir="runs/gsm8k",
    data=DataConfig(name="gsm8k"),
    num_steps=200,
    problems_per_step=64,
    samples_per_problem=16,
    model=ModelConfig(name="Qwen/Qwen3-1.7B-Base"),
    optimizer=OptimizerConfig(learning_rate=6e-5),
    sampling=SamplingParams(max_tokens=1024),
    batch=BatchConfig(tokens_per_micro_batch=16384, tokens_per_row=4096),
    sampler=SamplerConfig(kv_cache_gb=0, max_num_seqs=0),
    evaluation=EvaluationConfig(every=20, num_problems=0, num_problems_during_training=200),
)
CPU = replace(
    GPU,
    run_dir="runs/gsm8k-cpu",
    preset="cpu",
    num_steps=120,
    problems_per_step=32,
    advantage="standardized",
    consensus_penalty=0.5,  # without it all answers became "5": docs/log.md
    model=ModelConfig(name=BUNDLED),
    optimizer=OptimizerConfig(learning_rate=1.5e-4),
    prompt=PromptConfig(template="plain", instruction="Answer with the number only."),
    sampling=SamplingParams(max_tokens=32),
    batch=BatchConfig(tokens_per_micro_batch=512),
    sampler=SamplerConfig(max_prompt_tokens=320),
    evaluation=EvaluationConfig(every=25, num_problems=200, num_problems_during_training=200),
)
CPU_REASON = replace(
    CPU,
    run_dir="runs/gsm8k-reason",
    preset="cpu-reason",
    num_steps=40,
    samples_per_problem=8,
    consensus_penalty=0.0,
    model=ModelConfig(name="runs/sft-gsm8k-merged"),
    optimizer=OptimizerConfig(learning_rate=3e-4),
    prompt=PromptConfig(),
    sampling=SamplingParams(max_tokens=192),
    batch=BatchConfig(tokens_per_micro_batch=2048),
    evaluation=EvaluationConfig(every=10, num_problems=0, num_problems_during_training=200),
)
TOY_PRESET = replace(
    CPU,
    run_dir="runs/gsm8k-toy",
    preset="toy",
    num_steps=2,
    samples_per_problem=8,
    num_threads=1,
    model=ModelConfig(name=TOY, dtype="float32"),
    sampling=SamplingParams(max_tokens=8),
    sampler=SamplerConfig(kind="torch", max_prompt_tokens=400),
    evaluation=EvaluationConfig(num_problems=8),
)
PRESETS = {"gpu": GPU, "cpu": CPU, "cpu-reason": CPU_REASON, "toy": TOY_PRESET}
