"""What comes from outside: toy models whose folder was changed, and files of problems."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlora.model.sources import ModelConfig, make_toy
from rlora.recipes.gsm8k import PRESETS
from rlora.run_config import RunConfig
from rlora.tasks import DataConfig
from rlora.tasks.prompts import PromptConfig

END = 0  # the toy model's end token


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))


def toy_folder(folder: Path, *, template: str | None = None, special: tuple[str, ...] = (), **config: Any) -> Path:
    """Write a toy model: with a chat template, tokens made special (or added), and other fields of its config."""
    make_toy(folder, seed=int(config.pop("seed", 0)))
    if special or template is not None:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
    edit_json(folder / "config.json", lambda stored: stored.update(config))
    return folder


def says(folder: Path, token: int, *, nats: float, instead_of_the_end: bool = False) -> None:
    """Let the toy model say a token more often, and where wished the end token as much less."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    shared = model.model.embed_tokens.weight.mean(0)
    with torch.no_grad():
        model.lm_head.weight[token] += nats / 64 * shared * 8 / shared.norm()
        if instead_of_the_end:
            model.lm_head.weight[END] -= nats / 64 * shared * 8 / shared.norm()
    model.save_pretrained(folder)


def sums(path: Path, *, count: int = 24, **fields: Any) -> Path:
    """Write sums of one digit as a file of problems; `fields` replace the rows'."""
    rows = [
        {"question": f"What is {a} + {b}?", "answer": str(a + b), **fields} for a in range(1, 9) for b in range(1, 9)
    ]
    return jsonl(path, rows[:count])


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_of(run_dir: Path, *, model: Path | None = None, train: Path, **changes: Any) -> RunConfig:
    """Return GSM8K's toy preset on a model's folder and a file of problems, with the template that is there."""
    if model is not None:
        changes["model"] = ModelConfig(name=str(model), dtype="float32")
    changes.setdefault("prompt", PromptConfig())
    changes = {"run_dir": str(run_dir), "data": DataConfig(train=str(train)), "num_steps": 1, **changes}
    return dataclasses.replace(PRESETS["toy"], **changes)


def rollouts(run_dir: Path, step: int = 0) -> list[dict[str, Any]]:
    lines = (run_dir / f"rollouts/step-{step:06d}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]
