"""Trained tokens a second of supervised fine-tuning, rlora against TRL's SFTTrainer with PEFT; prints one JSON line.

    python -m benchmarks.sft                                  the bundled model, rank 1, 16 examples an update
    python -m benchmarks.sft --updates 2 --rounds 1 --model toy --dtype float32 --train FILE.jsonl

Both take the same examples in the same updates, at the same rank, alpha, rate, precision and layers, and learn the
assistant's tokens alone; the tokens that count are rlora's for both. TRL pads the examples of a pass (its packing wants
flash attention, or lets examples see one another), rlora packs them into rows. The arms take turns, each in a process
of its own, and the first update of each is left out: what is compiled is compiled by then. It takes conversations of
one turn each, from --train or from sft/alpaca_en_demo.jsonl in the data folder.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from rlora.errors import DataError
from rlora.lora.config import LoraConfig
from rlora.model.sources import DTYPES, ModelConfig, load_tokenizer, model_dir
from rlora.supervised.build import make_trainer
from rlora.supervised.config import SupervisedConfig
from rlora.tasks.chat import Chat, PromptConfig
from rlora.tasks.conversations import conversation_of
from rlora.tasks.examples import Encoder, Example, Intake
from rlora.tasks.source import data_folder, read_jsonl
from rlora.train.batching import BatchConfig
from rlora.train.optimizer import OptimizerConfig

ARMS = ("rlora", "trl")
RATE, ALPHA = 5e-4, 32


def main() -> None:
    options = parsed()
    if options.arm:
        seconds = {"rlora": rlora_seconds, "trl": trl_seconds}[options.arm](options)
        print("RESULT" + json.dumps(seconds))
        return
    tokens = [sum(example.num_trained for example in update) for update in examples_of(options)][1:]
    rates: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(options.rounds):
        for arm in ARMS:
            rates[arm].append(sum(tokens) / sum(child(arm)[1:]))
            print(f"{arm}: {rates[arm][-1]:.0f} trained tokens/s", file=sys.stderr)
    median = {arm: statistics.median(values) for arm, values in rates.items()}
    print(json.dumps({"trained_tokens_per_second": rates, "ratio": median["rlora"] / median["trl"]}))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=6, help="of which the first is not counted")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--examples", type=int, default=16, help="of an update")
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--row", type=int, default=512, help="tokens of a packed row")
    parser.add_argument("--trl-batch", type=int, default=4, help="examples that TRL computes at once")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--train", type=Path)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.updates < 2:
        parser.error("--updates must be at least 2: the first is not counted.")
    return options


def child(arm: str) -> list[float]:
    """Return the seconds of an arm's updates, computed in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.sft", *sys.argv[1:], "--arm", arm]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    return json.loads(line.removeprefix("RESULT"))


def rows_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the conversations of all updates, in order."""
    path, folder = options.train, data_folder()
    if path is None:
        if folder is None:
            raise DataError("name a file of conversations by --train, or a data folder by RLORA_DATA.")
        path = folder / "sft" / "alpaca_en_demo.jsonl"
    rows = [row for row in read_jsonl(path) if len(row["messages"]) == 2]
    wanted = options.updates * options.examples
    if len(rows) < wanted:
        raise DataError(f"{path} has {len(rows)} conversations of one turn, and {wanted} are wanted.")
    return rows[:wanted]


def examples_of(options: argparse.Namespace) -> list[list[Example]]:
    """Return the examples of each update."""
    model = ModelConfig(name=options.model)
    encoder = Encoder(Chat(load_tokenizer(model_dir(model), model), PromptConfig()), max_tokens=options.max_tokens)
    intake = Intake()
    for number, row in enumerate(rows_of(options), start=1):
        encoder.add(intake, conversation_of(row, where=f"row {number}"), id=str(number))
    if intake.unfit:
        raise DataError(f"both arms must train the same examples: {' '.join(intake.lines('data', options.max_tokens))}")
    size = options.examples
    return [intake.examples[start : start + size] for start in range(0, len(intake.examples), size)]


def rlora_seconds(options: argparse.Namespace) -> list[float]:
    updates = examples_of(options)
    config = SupervisedConfig(
        run_dir="",
        max_tokens=options.max_tokens,
        model=ModelConfig(name=options.model, dtype=options.dtype),
        lora=LoraConfig(rank=options.rank, alpha=ALPHA),
        optimizer=OptimizerConfig(learning_rate=RATE),
        batch=BatchConfig(tokens_per_micro_batch=2048, tokens_per_row=options.row),
    )
    trainer = make_trainer(config, model_dir(config.model), is_new=True)
    seconds = []
    for update in updates:
        start = time.perf_counter()
        trainer.step_supervised(update)
        seconds.append(time.perf_counter() - start)
    return seconds


def trl_seconds(options: argparse.Namespace) -> list[float]:
    from datasets import Dataset
    from peft import LoraConfig as PeftConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Clock(TrainerCallback):
        """Notes when the training begins and when each update ends."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def on_train_begin(self, *_: object, **__: object) -> None:
            self.times.append(time.perf_counter())

        def on_step_end(self, *_: object, **__: object) -> None:
            self.times.append(time.perf_counter())

    folder, clock = model_dir(ModelConfig(name=options.model)), Clock()
    data = [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in rows_of(options)]
    with tempfile.TemporaryDirectory() as output:
        config = SFTConfig(
            output_dir=output,
            max_steps=options.updates,
            per_device_train_batch_size=options.trl_batch,
            gradient_accumulation_steps=options.examples // options.trl_batch,
            max_length=options.max_tokens,
            completion_only_loss=True,
            packing=False,
            shuffle_dataset=False,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            bf16=options.dtype == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            report_to=[],
            logging_steps=1000,
            save_strategy="no",
        )
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[options.dtype]),
            processing_class=AutoTokenizer.from_pretrained(folder),
            args=config,
            train_dataset=Dataset.from_list(data),
            peft_config=PeftConfig(
                r=options.rank, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            callbacks=[clock],
        )
        trainer.train()
    return [end - start for start, end in zip(clock.times, clock.times[1:], strict=False)]


if __name__ == "__main__":
    main()
