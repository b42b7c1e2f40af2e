"""DeepMath-103K with a rank-1 policy, for AIME: hard problems, long completions.

    rlora train deepmath --model.name Qwen/Qwen3-8B-Base               (one GPU; defaults below)
    rlora eval --run runs/deepmath --benchmark aime2024,aime2025,aime2026 --samples 32
    rlora train deepmath --preset cpu                                  (two CPU cores, the bundled 135M model)
    rlora train deepmath --preset toy                                  (random weights, seconds; for tests)

Data: the hub's zwhe99/DeepMath-103K, or a folder with deepmath/train.jsonl (or sample.jsonl) named by --data-dir or
$RLORA_DATA; 500 of its problems are held out for the test.

Hardware and time: the GPU defaults (rank 1, alpha 32, rate 5e-5, 32 problems x 16 samples of at most 8192 tokens) are
meant for one GPU with 80 GB. No run of this code on a GPU stands behind them yet, so no time is stated. They follow
"LoRA Without Regret" (Thinking Machines, 2025), which trained Qwen3-8B-Base on DeepMath with at most 8192 tokens a
sample and tested on AIME 2024 and 2025; it gives scores as plots only. The number to expect is from the literature, not
from a run of this code: full fine-tuning of Qwen2.5-7B on DeepMath goes from 7.7 to 20.4 % on AIME 2024 and from 5.4 to
17.5 % on AIME 2025, avg@16 (DeepMath-103K, arXiv 2504.11456).

The cpu preset (32 problems x 8 samples of at most 64 tokens an iteration) shows that everything works: the bundled
model, SmolLM2-135M-Instruct in 4-bit weights dequantised, solves next to nothing of DeepMath (1 of 512 completions in
its first two iterations), so most of its iterations train nothing. Those two iterations, with start and final
evaluation, took 171 s on two cores that other work shared.
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
    run_dir="runs/deepmath",
    data=DataConfig(name="deepmath"),
    num_steps=200,
    problems_per_step=32,
    samples_per_problem=16,
    model=ModelConfig(name="Qwen/Qwen3-8B-Base"),
    optimizer=OptimizerConfig(learning_rate=5e-5),
    sampling=SamplingParams(max_tokens=8192),
    batch=BatchConfig(tokens_per_micro_batch=16384, tokens_per_row=8192),
    sampler=SamplerConfig(kv_cache_gb=0, max_num_seqs=0),
    evaluation=EvaluationConfig(every=20, num_problems=200, num_problems_during_training=100),
)
CPU = replace(
    GPU,
    run_dir="runs/deepmath-cpu",
    preset="cpu",
    num_steps=10,
    problems_per_step=32,
    samples_per_problem=8,
    model=ModelConfig(name=BUNDLED),
    optimizer=OptimizerConfig(learning_rate=5e-4),
    prompt=PromptConfig(instruction="Give only the final answer."),
    sampling=SamplingParams(max_tokens=64),
    batch=BatchConfig(tokens_per_micro_batch=512),
    sampler=SamplerConfig(max_prompt_tokens=320),
    evaluation=EvaluationConfig(num_problems=50),
)
TOY_PRESET = replace(
    CPU,
    run_dir="runs/deepmath-toy",
    preset="toy",
    num_steps=2,
    num_threads=1,
    model=ModelConfig(name=TOY, dtype="float32"),
    sampling=SamplingParams(max_tokens=8),
    sampler=SamplerConfig(kind="torch", max_prompt_tokens=400),
    evaluation=EvaluationConfig(num_problems=8),
)
PRESETS = {"gpu": GPU, "cpu": CPU, "toy": TOY_PRESET}
