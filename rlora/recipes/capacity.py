"""How many bits does a policy hold? Random tables that a small frozen model must store, by rank.

    python -m rlora.recipes.capacity                  (7 ranks and full fine-tuning at three rates each)
    python -m rlora.recipes.capacity --preset toy     (seconds; for tests)

A table gives each of 4,096 keys a random symbol of 64: 24,576 bits, which nothing but storing them predicts. The base
is a Llama of a few layers that was trained in full on another such table, and is frozen then. What a condition has
stored after a step are the bits of the table less those of its remaining loss. The same command goes on with a study
that was stopped: a condition that is done stays.

Left in the folder: base/, conditions/NAME.json (the loss at each power of the square root of two), table.txt,
table.json, plot.png, plot.svg.
"""

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import active_children, get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from rlora.config import cli, differences, from_json, to_json, with_home
from rlora.errors import NonFiniteError, RunDirError
from rlora.full.weights import FullWeights, save_weights
from rlora.lora.config import LoraConfig
from rlora.model.base import Base
from rlora.model.sources import ModelConfig
from rlora.recipe import explained
from rlora.recipes.capacity_config import FULL, PRESETS, CapacityConfig, Condition, conditions_of
from rlora.recipes.capacity_report import write_report
from rlora.seeding import derive_seed, generator
from rlora.store.claim import claim
from rlora.store.run_dir import read_json, write_json
from rlora.system.screen import say, stage
from rlora.train.batching import Batch, MicroBatch
from rlora.train.losses import LossConfig
from rlora.train.optimizer import OptimizerConfig
from rlora.train.policy import Policy
from rlora.train.trainer import Trainer

_STUDY_FILE = "study.json"
_BASE_RATE = 1e-3
_EVALUATED_ROWS = 1024


class Table:
    """Keys of symbols with a random value each.

    Example:
        >>> Table(PRESETS["toy"], "stored").batch(torch.arange(32)).num_trained_tokens
        32
    """

    def __init__(self, config: CapacityConfig, name: str):
        """Draw the table of this name: another name is another table over the same keys."""
        base, length = config.num_symbols, config.key_length
        places = base ** torch.arange(length - 1, -1, -1)
        self.keys_KL = torch.arange(config.num_keys)[:, None] // places % base
        self.values_K = torch.randint(base, (config.num_keys,), generator=generator(config.seed, "table", name))

    def batch(self, rows_N: torch.Tensor, *, version: int = 0) -> Batch:
        """Return a batch whose trained tokens are the values of rows (N)."""
        keys_NL = self.keys_KL[rows_N]
        count, length = keys_NL.shape
        empty_N = torch.zeros(0)
        micro_batch = MicroBatch(
            tokens_BT=keys_NL,
            positions_BT=torch.arange(length).expand(count, length).contiguous(),
            segments_BT=torch.ones(count, length, dtype=torch.long),
            source_N=torch.arange(1, count + 1) * length - 1,
            target_N=self.values_K[rows_N],
            sampler_logprobs_N=empty_N,
            advantages_N=empty_N,
            completion_N=torch.arange(count),
        )
        return Batch(
            micro_batches=(micro_batch,),
            num_trained_tokens=count,
            version=version,
            num_positions=keys_NL.numel(),
            num_padding=0,
            num_unshared_positions=keys_NL.numel(),
            is_supervised=True,
        )

    @torch.no_grad()
    def loss(self, policy: Policy) -> float:
        """Return the mean loss of a policy on all rows, bits a symbol."""
        nats = 0.0
        for rows_N in torch.arange(len(self.values_K)).split(_EVALUATED_ROWS):
            nats -= float(policy.score(self.batch(rows_N).micro_batches[0]).logprobs_N.double().sum())
        return nats / len(self.values_K) / math.log(2)


def train_on(policy: Policy, table: Table, config: CapacityConfig, *, rate: float, steps: int) -> Iterator[int]:
    """Train a policy on rows drawn with replacement, in the same order for all; yield the number of each update."""
    optimizer = OptimizerConfig(learning_rate=rate, beta2=0.95)
    trainer = Trainer(policy, optimizer, LossConfig())
    random = generator(config.seed, "rows")
    for step in range(1, steps + 1):
        rows_N = torch.randint(len(table.values_K), (config.batch_size,), generator=random)
        trainer.apply(table.batch(rows_N, version=policy.version))
        yield step


def make_base(config: CapacityConfig, folder: Path) -> None:
    """Write the base: random weights, trained in full on a table that is not the one to be stored."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(derive_seed(config.seed, "base"))
    heads = config.hidden_size // 8 if config.hidden_size < 32 else config.hidden_size // 16
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.num_symbols,
            hidden_size=config.hidden_size,
            intermediate_size=2 * config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=64,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
            tie_word_embeddings=False,
        )
    )
    with TemporaryDirectory() as random:
        model.save_pretrained(random)
        policy = policy_on(Path(random), Condition(rank=FULL, rate=_BASE_RATE), config)
        for _ in train_on(policy, Table(config, "of the base"), config, rate=_BASE_RATE, steps=config.base_steps):
            pass
        weights = policy.snapshot()
        assert isinstance(weights, FullWeights)
        save_weights(weights, folder)


def policy_on(folder: Path, condition: Condition, config: CapacityConfig) -> Policy:
    """Return a condition's new policy on the base in `folder`, in fp32."""
    base = Base.load(folder, ModelConfig(name=str(folder), dtype="float32"), device=torch.device("cpu"))
    lora = LoraConfig(rank=condition.rank) if condition.rank else None
    return Policy.on(base, lora, seed=derive_seed(config.seed, "policy", condition.rank))


def measured(config: CapacityConfig, condition: Condition) -> dict[str, Any]:
    """Train one condition, and return its curve: the loss, bits a symbol, after each of `steps_seen`.

    One whose numbers stop being finite ends there, and says so.
    """
    torch.set_num_threads(1)
    policy, table = policy_on(Path(config.run_dir) / "base", condition, config), Table(config, "stored")
    start, losses, why = time.monotonic(), {0: table.loss(policy)}, ""
    seen, parent = set(config.steps_seen), os.getppid()
    try:
        for step in train_on(policy, table, config, rate=condition.rate, steps=config.num_steps):
            if os.getppid() != parent:  # it was killed, and nobody takes what is measured here
                raise SystemExit(1)
            if step in seen:
                losses[step] = table.loss(policy)
    except NonFiniteError as error:
        why = str(error)
    return {
        "rank": condition.rank,
        "rate": condition.rate,
        "num_numbers": policy.flat.theta_D.numel(),
        "losses": {str(step): loss for step, loss in losses.items()},
        "ended": why,
        "seconds": time.monotonic() - start,
    }


def study(config: CapacityConfig) -> Path:
    """Measure all conditions that are not done yet, write the report, and return the folder.

    Raises:
        ConfigError: A value breaks a rule.
        RunDirError: The folder holds something else, or a study of other settings.
    """
    config.check()
    folder = Path(config.run_dir)
    lock = claim(folder, holds="a capacity study", option="--run-dir", marked_by=_STUDY_FILE)
    try:
        _keep_settings(config, folder)
        if not (folder / "base" / "done").is_file():
            with stage(f"Training the base on a table of its own, {config.base_steps:,} steps"):
                torch.set_num_threads(1)
                make_base(config, folder / "base")
                (folder / "base" / "done").touch()
        files = {condition: folder / "conditions" / f"{condition.name}.json" for condition in conditions_of(config)}
        (folder / "conditions").mkdir(exist_ok=True)
        _measure([condition for condition, file in files.items() if not file.is_file()], config, files)
        rows = [read_json(file) for file in files.values()]
        say(write_report(rows, folder, table_bits=config.table_bits, num_keys=config.num_keys))
    finally:
        lock.release()
    return folder


def _measure(waiting: Sequence[Condition], config: CapacityConfig, files: Mapping[Condition, Path]) -> None:
    """Measure conditions, several at once, and write each down when it is done."""
    if not waiting:
        return
    start, done = time.monotonic(), 0
    with ProcessPoolExecutor(config.num_processes, mp_context=get_context("spawn")) as processes:
        running: dict[Future[dict[str, Any]], Condition] = {
            processes.submit(measured, config, condition): condition for condition in waiting
        }
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    condition, row = running.pop(future), future.result()
                    write_json(files[condition], row)
                    done += 1
                    left = (time.monotonic() - start) / done * (len(waiting) - done)
                    loss = list(row["losses"].values())[-1]
                    say(
                        f"{condition.name:16} {loss:.3f} bits a symbol  {done}/{len(waiting)}  left {left / 60:.0f} min"
                    )
        except BaseException:
            processes.shutdown(wait=False, cancel_futures=True)
            for process in active_children():  # those at work go on for minutes otherwise
                process.terminate()
            raise


def _keep_settings(config: CapacityConfig, folder: Path) -> None:
    """Write down the settings, or hold that they are those that the study began with; conditions may be added."""
    free = ("run_dir", "preset", "ranks", "rates", "full_rates", "num_processes")
    file, values = folder / _STUDY_FILE, to_json(config)
    if file.is_file():
        before = to_json(from_json(CapacityConfig, read_json(file)))
        old, new = ({name: value for name, value in each.items() if name not in free} for each in (before, values))
        if changed := differences(old, new):
            raise RunDirError(
                f"{folder} holds a study of other settings ({'; '.join(changed)}); set them back, or choose another "
                "--run-dir."
            )
    write_json(file, values)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study that the command line describes."""
    config = with_home(cli(PRESETS, description=__doc__ or "", arguments=arguments))
    with explained(lambda: (config.run_dir, [])):
        study(config)


if __name__ == "__main__":
    main()
