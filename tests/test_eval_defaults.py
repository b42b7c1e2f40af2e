"""`rlora eval --run RUN` without further options: what the run did, in lengths that its model has positions for."""

import dataclasses
import json
from pathlib import Path

import pytest
from support.policies import ROOT
from support.recipes import presets

from rlora.commands.eval import parse
from rlora.config import to_json
from rlora.evaluation.config import PRESETS
from rlora.evaluation.lengths import fitted
from rlora.evaluation.run import evaluate_benchmarks
from rlora.loop import run

pytestmark = pytest.mark.unit


def run_folder(folder: Path, name: str, recipe: str = "gsm8k", **changes) -> str:
    """Write a run directory's config.json, which is all that the defaults are read from."""
    folder.mkdir()
    config = dataclasses.replace(presets(ROOT / "recipes" / f"{recipe}.py")[name], **changes)
    (folder / "config.json").write_text(json.dumps(to_json(config)))
    return str(folder)


def test_defaults_are_the_runs_own_sampler_temperature_and_lengths(tmp_path) -> None:
    parsed = parse(["--run", run_folder(tmp_path / "cpu", "cpu"), "--benchmark", "aime2024"])
    assert (parsed.preset, parsed.model, parsed.max_tokens, parsed.samples) == ("run", None, 32, 4)
    assert (parsed.sampler.kv_cache_gb, parsed.sampler.max_prompt_tokens) == (1.0, 2048)
    toy = parse([f"--run={run_folder(tmp_path / 'toy', 'toy')}"])
    assert (toy.sampler.kind, toy.num_threads, toy.max_tokens) == ("torch", 1, 8)
    given = parse(["--run", str(tmp_path / "cpu"), "--max-tokens", "99", "--preset", "gpu"])
    assert given == dataclasses.replace(PRESETS["gpu"], run=str(tmp_path / "cpu"), max_tokens=99)


def test_a_run_of_the_gpu_preset_is_evaluated_on_a_machine_without_one(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert parse(["--run", run_folder(tmp_path / "gpu", "gpu")]).sampler.kv_cache_gb == 1


@pytest.mark.parametrize(
    ("positions", "prompt", "tokens", "expected", "said"),
    [
        (8192, 2048, 8192, (2048, 6144), "8,192 positions, so completions may have 6,144 tokens in place of 8,192"),
        (512, 2048, 8192, (256, 256), "prompts may have 256 tokens in place of 2,048 and completions"),
        (512, 2048, 8, (504, 8), "512 positions, so prompts may have 504 tokens in place of 2,048"),
        (512, 400, 8192, (400, 112), "completions may have 112 tokens in place of 8,192"),
        (512, 400, 500, (400, 500), ""),  # both were given: an error where the engine is built
        (32768, 2048, 8192, (2048, 8192), ""),
        (None, 2048, 8192, (2048, 8192), ""),
    ],
)
def test_lengths_left_at_their_defaults_give_way_to_the_models_positions(
    positions, prompt, tokens, expected, said
) -> None:
    sampler = dataclasses.replace(PRESETS["gpu"].sampler, max_prompt_tokens=prompt)
    config = dataclasses.replace(PRESETS["gpu"], sampler=sampler, max_tokens=tokens)
    changed, cut = fitted(config, positions)
    assert (changed.sampler.max_prompt_tokens, changed.max_tokens) == expected
    assert said in cut
    assert bool(said) == bool(cut)


@pytest.mark.loop
def test_a_run_of_a_small_model_is_evaluated_without_options(tmp_path, capfd) -> None:
    preset = presets(ROOT / "recipes" / "arithmetic.py")["toy"]
    run_dir = run(dataclasses.replace(preset, run_dir=str(tmp_path / "run"), num_steps=1))
    results = evaluate_benchmarks(parse(["--run", str(run_dir), "--benchmark", "digits"]))
    assert results["config"]["sampler"]["max_prompt_tokens"] == 504
    printed = capfd.readouterr().err
    assert f"As {run_dir} sampled: temperature 1, completions of at most 8 tokens; prompts of at most 504." in printed
    assert "512 positions, so prompts may have 504 tokens in place of 2,048" in printed
