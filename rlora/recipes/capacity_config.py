"""What a capacity study stores, in what, and by which policies: its settings, presets and conditions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rlora.errors import ConfigError
from rlora.lora.config import LoraConfig

FULL = 0  # the "rank" of a condition that trains every weight


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityConfig:
    """What is stored, in what, and by which policies."""

    run_dir: str = "runs/capacity"
    """Folder of the study; the same command goes on with one that was stopped."""
    preset: str = "cpu"
    """The name of the settings that the others change."""
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Ranks of the adapters, on all layers."""
    rates: tuple[float, ...] = (2e-3, 6e-3, 2e-2)
    """Learning rates of each rank; its curve is the best of them at each step."""
    full_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Those of full fine-tuning; none leaves it out."""
    num_steps: int = 2048
    """Updates of each condition."""
    batch_size: int = 512
    """Keys of an update, drawn with replacement."""
    num_keys: int = 4096
    """Rows of the table."""
    num_symbols: int = 64
    """Symbols that keys are written in, and one of which each key has as its value."""
    num_layers: int = 6
    """Layers of the base."""
    hidden_size: int = 64
    """Width of the base."""
    base_steps: int = 2048
    """Updates of the base on a table of its own before it is frozen."""
    num_processes: int = 2
    """Conditions that are trained at once, each by one thread."""
    seed: int = 0
    """Draws the tables, the base, the adapters, and the order of keys."""

    def check(self) -> None:
        """Raise ConfigError for a value that breaks a rule."""
        for name in ("num_steps", "batch_size", "num_keys", "num_layers", "base_steps", "num_processes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.num_symbols < 2:
            raise ConfigError(f"num_symbols is {self.num_symbols}; a table needs at least 2.")
        if self.hidden_size < 8 or self.hidden_size % 8:
            raise ConfigError(f"hidden_size is {self.hidden_size}; it must be a multiple of 8. Try 64.")
        if not (self.ranks and self.rates) and not self.full_rates:
            raise ConfigError("nothing is to be trained: name --ranks and --rates, or --full-rates.")
        for rank in self.ranks:
            LoraConfig(rank=rank).check()

    @property
    def key_length(self) -> int:
        """Symbols of a key."""
        return max(1, math.ceil(math.log(self.num_keys, self.num_symbols) - 1e-9))

    @property
    def table_bits(self) -> float:
        """What there is to store."""
        return self.num_keys * math.log2(self.num_symbols)

    @property
    def steps_seen(self) -> list[int]:
        """The updates after which the loss is measured: the powers of the root of two, and the last."""
        powers = {round(2 ** (half / 2)) for half in range(2 * self.num_steps.bit_length())}
        return sorted({step for step in powers if step <= self.num_steps} | {self.num_steps})


CPU = CapacityConfig()
TOY = replace(
    CPU,
    run_dir="runs/capacity-toy",
    preset="toy",
    ranks=(1, 4),
    rates=(1e-2,),
    full_rates=(3e-3,),
    num_steps=32,
    batch_size=32,
    num_keys=64,
    num_symbols=8,
    num_layers=2,
    hidden_size=16,
    base_steps=32,
)
PRESETS: Mapping[str, CapacityConfig] = {"cpu": CPU, "toy": TOY}


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One policy to be trained: its rank, 0 for full fine-tuning, and its learning rate."""

    rank: int
    rate: float

    @property
    def name(self) -> str:
        """What its file is called."""
        return f"{f'rank{self.rank}' if self.rank else 'full'}-lr{self.rate:g}"


def conditions_of(config: CapacityConfig) -> list[Condition]:
    """Return all conditions, the largest policies first, which take longest."""
    full = [Condition(rank=FULL, rate=rate) for rate in config.full_rates]
    return full + [
        Condition(rank=rank, rate=rate) for rank in sorted(config.ranks, reverse=True) for rate in config.rates
    ]
