"""Supervised fine-tuning on conversations: the assistant's turns are learned.

    rlora train sft --train mine.jsonl --model.name Qwen/Qwen3-1.7B-Base      (one GPU; defaults below)
    rlora train sft --train mine.jsonl --preset cpu                           (two CPU cores, the bundled 135M model)
    rlora train sft --data tulu3 --limit 50000                                (allenai/tulu-3-sft-mixture, of the hub)
    rlora train sft --preset cpu-reason                                       (GSM8K's worked solutions, then RL)
    rlora train sft --train mine.jsonl --preset toy                           (random weights, seconds; for tests)

A row of mine.jsonl is {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}.
What it reports is the loss on held-out conversations, in nats and bits a token (docs/supervised.md).

The GPU defaults (rank 32, 64 examples an update, rate 5e-4: ten times what full fine-tuning takes) follow the rule of
"LoRA Without Regret" for supervised training; they never ran on a GPU yet.
"""

from dataclasses import replace

from rlora.lora.config import LoraConfig
from rlora.model.sources import BUNDLED, TOY, ModelConfig
from rlora.supervised.config import HeldOutConfig, SupervisedConfig
from rlora.supervised.data import ConversationsConfig
from rlora.tasks.prompts import PromptConfig
from rlora.tasks.sets import gsm8k
from rlora.train.batching import BatchConfig
from rlora.train.optimizer import OptimizerConfig

GPU = SupervisedConfig(
    run_dir="runs/sft",
    examples_per_step=64,
    model=ModelConfig(name="Qwen/Qwen3-1.7B-Base"),
    lora=LoraConfig(rank=32),
    optimizer=OptimizerConfig(learning_rate=5e-4),
    batch=BatchConfig(tokens_per_micro_batch=16384, tokens_per_row=4096),
)
CPU = replace(
    GPU,
    run_dir="runs/sft-cpu",
    preset="cpu",
    examples_per_step=16,
    max_tokens=1024,
    model=ModelConfig(name=BUNDLED),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    batch=BatchConfig(tokens_per_micro_batch=2048, tokens_per_row=512),
    evaluation=HeldOutConfig(every=20, num_examples=100),
)
CPU_REASON = replace(
    CPU,
    run_dir="runs/sft-gsm8k",
    preset="cpu-reason",
    data=ConversationsConfig(name="gsm8k"),
    epochs=2,
    examples_per_step=32,
    max_tokens=512,
    prompt=PromptConfig(instruction=gsm8k.INSTRUCTION),
    evaluation=HeldOutConfig(every=50, num_examples=200),
)
TOY_PRESET = replace(
    CPU,
    run_dir="runs/sft-toy",
    preset="toy",
    examples_per_step=4,
    max_tokens=256,
    num_threads=1,
    model=ModelConfig(name=TOY, dtype="float32"),
    lora=LoraConfig(rank=2),
    evaluation=HeldOutConfig(every=2, num_examples=20),
)
PRESETS = {"gpu": GPU, "cpu": CPU, "cpu-reason": CPU_REASON, "toy": TOY_PRESET}
