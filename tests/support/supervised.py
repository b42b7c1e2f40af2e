"""Small supervised runs of the toy model on sums written out as conversations."""

import json
from dataclasses import replace
from pathlib import Path

from rlora.recipes.sft import TOY_PRESET
from rlora.supervised.config import SupervisedConfig
from rlora.supervised.data import ConversationsConfig


def sums(count: int = 60, *, first: int = 0) -> list[dict]:
    """Return conversations that ask for small sums and answer in words of different lengths."""
    rows = []
    for index in range(first, first + count):
        a, b = index % 10, index // 10
        said = f"{a} + {b} = {a + b}" + " ok" * (index % 4)
        turns = [{"role": "user", "content": f"What is {a} + {b}?"}, {"role": "assistant", "content": said}]
        rows.append({"messages": turns})
    return rows


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def toy_sft(tmp_path: Path, name: str = "run", **changes) -> SupervisedConfig:
    """Return a run of 5 updates on 60 conversations, which are written beside it."""
    train = write(tmp_path / "sums.jsonl", sums())
    defaults = {"num_steps": 5, "data": ConversationsConfig(train=str(train)), "run_dir": str(tmp_path / name)}
    return replace(TOY_PRESET, **(defaults | changes))
