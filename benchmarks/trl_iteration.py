"""Seconds of an update of TRL's GRPOTrainer with PEFT rank 1 on the quickstart's work; prints one JSON line.

The same model, prompts, group size, token limit, temperature, rank, alpha, learning rate and adapted layers as the
quickstart; sampling by Transformers' generate, as TRL does without a GPU.
"""

import json
import sys
import time

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from rlora.model.sources import ModelConfig, model_dir
from rlora.tasks import task

PROBLEMS, SAMPLES, MAX_TOKENS = 32, 8, 32


class Clock(TrainerCallback):
    """Notes when each update ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.ends.append(time.perf_counter())

    def on_step_end(self, *_: object, **__: object) -> None:
        self.ends.append(time.perf_counter())


def reward(completions: list, answer: list[str], **_: object) -> list[float]:
    texts = [completion[0]["content"] for completion in completions]
    return [float(text.strip().rstrip(".") == gold) for text, gold in zip(texts, answer, strict=True)]


def main(num_updates: int) -> None:
    folder = model_dir(ModelConfig())
    problems = task("arithmetic").load("train", None)[: PROBLEMS * num_updates]
    instruction = task("arithmetic").instruction
    data = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": f"{p.question} {instruction}"}], "answer": p.answer} for p in problems]
    )
    config = GRPOConfig(
        output_dir="build/trl",
        max_steps=num_updates,
        per_device_train_batch_size=32,
        gradient_accumulation_steps=PROBLEMS * SAMPLES // 32,
        num_generations=SAMPLES,
        max_completion_length=MAX_TOKENS,
        temperature=1.0,
        beta=0.0,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        report_to=[],
        logging_steps=1000,
        save_strategy="no",
    )
    clock = Clock()
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16),
        processing_class=AutoTokenizer.from_pretrained(folder),
        args=config,
        train_dataset=data,
        reward_funcs=reward,
        peft_config=LoraConfig(r=1, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[clock],
    )
    trainer.train()
    seconds = [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]
    print("RESULT" + json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
