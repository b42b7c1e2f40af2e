"""`rlora runs` and `rlora export` on toy runs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.policies import ROOT, TOY_MODEL
from support.runs import SIZE, stopped, toy

from rlora.commands import export, runs
from rlora.commands.cli import main
from rlora.commands.eval import parse
from rlora.config import to_json
from rlora.evaluation.subject import resolve as evaluated
from rlora.lora.config import LoraConfig
from rlora.model.sources import loadable_name, model_dir, short_name
from rlora.store.merge import save_merged
from rlora.store.origin import other_base
from rlora.system.lock import FolderLock
from rlora.train.optimizer import OptimizerConfig
from rlora.train.policy import Policy

pytestmark = pytest.mark.loop
ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def folder(straight, tmp_path_factory):
    """A folder of runs in every state."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(straight, folder / "done")
    stopped(toy(folder / "halfway", **SIZE), after=3)
    stopped(toy(folder / "broken", **SIZE), after=2)
    for path in (folder / "broken" / "checkpoints").glob("*/state.json"):
        path.write_text("{}")
    shutil.copytree(folder / "halfway", folder / "spoiled")
    (folder / "spoiled" / "config.json").write_text("{")
    shutil.copytree(folder / "halfway", folder / "torn")
    metrics = folder / "torn" / "metrics.jsonl"
    metrics.write_text("{" + metrics.read_text())
    (folder / "unrelated").mkdir()
    return folder


def test_runs_lists_every_state(folder) -> None:
    states = {path.name: runs.state_of(path) for path in folder.iterdir() if path.name != "unrelated"}
    assert {name: (state.state, state.step) for name, state in states.items()} == {
        "done": ("finished", 5),
        "halfway": ("stopped", 3),
        "broken": ("broken", 2),
        "spoiled": ("broken", 3),
        "torn": ("broken", 0),
    }
    assert "metrics.jsonl cannot be read" in states["torn"].why
    assert "all are damaged" in states["broken"].why
    assert "cannot be read" in states["spoiled"].why
    last = json.loads((folder / "halfway" / "metrics.jsonl").read_text().splitlines()[-1])
    assert states["halfway"].reward == last["reward/mean"]
    assert states["halfway"].num_steps == 5
    assert 0 <= (states["halfway"].age_seconds or -1) < 600
    lock = FolderLock(folder / "halfway")
    assert runs.state_of(folder / "halfway").state == "running"
    lock.release()


def test_the_runs_command_writes_a_table_and_json(folder, capsys) -> None:
    main(["runs", str(folder)])
    table = capsys.readouterr().out
    for word in ("finished", "stopped", "broken", "5/5", "3/5", "all are damaged"):
        assert word in table
    main(["runs", str(folder), "--json"])
    states = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(state["state"] for state in states) == ["broken", "broken", "broken", "finished", "stopped"]
    with pytest.raises(SystemExit) as ended:
        main(["runs", str(folder / "unrelated")])
    assert ended.value.code == 1
    assert "holds no run" in capsys.readouterr().err


def listed(folder: Path, capsys, *, width: int, monkeypatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    main(["runs", str(folder)])
    return capsys.readouterr().out.splitlines()


def test_runs_are_told_apart_by_what_differs_and_no_name_is_cut(tmp_path, capsys, monkeypatch) -> None:
    long = "llama-on-gsm8k-with-a-name-that-says-everything"
    for name, rank, seed in (("a", 1, 0), (long, 8, 3)):
        config = toy(tmp_path / name, seed=seed, lora=LoraConfig(rank=rank), optimizer=OptimizerConfig())
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(to_json(config)))
    wide = listed(tmp_path, capsys, width=400, monkeypatch=monkeypatch)
    assert wide[0].split()[-2:] == ["rank", "seed"]
    assert sorted(line.split()[-2:] for line in wide[1:]) == [["1", "0"], ["8", "3"]]
    assert any(line.startswith(f"{tmp_path / long}  stopped") for line in wide)
    narrow = listed(tmp_path, capsys, width=60, monkeypatch=monkeypatch)
    assert long in narrow
    assert "".join(line.strip() for line in narrow[:3]).startswith(f"In {tmp_path}:")
    assert max(map(len, narrow)) <= 60
    assert any({"state", "rank", "seed"} <= set(line.split()) for line in narrow)
    below = listed(tmp_path, capsys, width=40, monkeypatch=monkeypatch)
    assert max(map(len, below)) <= 40
    assert any(line.endswith("rank 8, seed 3") for line in below)


def test_runs_fit_80_columns_whatever_they_are_called_and_however_much_differs(tmp_path, capsys, monkeypatch) -> None:
    """Names of 200 characters, settings that all differ, a sum of many parts, and an error that quotes a path."""
    names = ["a", "b" * 200, "very-" * 39 + "long name"]
    for number, name in enumerate(names):
        config = toy(
            tmp_path / name,
            seed=number,
            lora=LoraConfig(rank=1 + number, layers=("all", "mlp", "attention")[number], alpha=16 + number),
            optimizer=OptimizerConfig(learning_rate=10.0**-number),
            problems_per_step=2 + number,
            samples_per_problem=2 + number,
            advantage=("centered", "standardized", "centered")[number],
            reward=f"correct=1 my_rewards:{'x' * 100 * number}y=0.5",
        )
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(to_json(config)))
        row = {"step": 0, "reward/mean": 1234567.125, "reward/correct_mean": 0.25, f"reward/{'p' * 90}_mean": -2.0}
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / names[1] / "config.json").write_text("{")
    lines = listed(tmp_path, capsys, width=80, monkeypatch=monkeypatch)
    assert max(map(len, lines)) <= 80
    text = "".join(line.strip() for line in lines)
    for name in names:
        assert name.replace(" ", "") in text.replace(" ", "")
    assert "1234567.125" in text
    assert "correct 0.250" in " ".join(line.strip() for line in lines)
    assert "problems 4, samples 4" in " ".join(line.strip() for line in lines)
    wide = listed(tmp_path, capsys, width=2000, monkeypatch=monkeypatch)
    assert "parts of the reward" in wide[0]
    main(["runs", str(tmp_path), "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[0])
    assert found["parts"] == {"correct": 0.25, "p" * 90: -2.0}


def test_a_reward_of_another_kind_is_listed_as_a_number_and_a_share_in_per_cent(tmp_path, capsys, monkeypatch) -> None:
    for name, reward in (("own", "my_rewards:score"), ("sum", "correct=0.5 format=0.2"), ("right", "number")):
        (tmp_path / name).mkdir()
        config = to_json(toy(tmp_path / name, reward=reward))
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        row = {"step": 0, "reward/mean": 0.3, "evaluation/accuracy": 0.4}
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    lines = listed(tmp_path, capsys, width=200, monkeypatch=monkeypatch)
    found = {Path(line.split()[0]).name: line for line in lines[1:]}
    assert "0.400" in found["own"]
    assert "%" not in found["own"] + found["sum"]
    assert "40.0 %" in found["right"]


def test_export_writes_the_adapter_of_any_kept_step(straight, tmp_path) -> None:
    main(["export", str(straight), "--to", str(tmp_path / "newest")])
    assert (tmp_path / "newest" / ADAPTER).read_bytes() == (straight / "adapter" / ADAPTER).read_bytes()
    main(["export", str(straight), "--step", "3", "--to", str(tmp_path / "third")])
    assert json.loads((tmp_path / "third" / "rlora.json").read_text())["version"] == 3
    third = load_file(tmp_path / "third" / ADAPTER)
    newest = load_file(tmp_path / "newest" / ADAPTER)
    assert third.keys() == newest.keys()
    assert any(not torch.equal(third[name], newest[name]) for name in third)
    card = (tmp_path / "newest" / "README.md").read_text()
    summary = json.loads((straight / "summary.json").read_text())
    assert "base_model: toy" in card
    assert "| base | toy |" in card
    assert "| steps | 5 of 6 problems x 64 samples |" in card
    assert (
        f"| held-out accuracy of the policy, greedy, 8 problems | {100 * summary['policy']['accuracy']:.1f} %" in card
    )
    base = json.loads((tmp_path / "newest" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(base).is_absolute()
    assert (Path(base) / "config.json").is_file()
    assert f"vllm serve {base} --enable-lora" in card
    assert "AutoPeftModelForCausalLM" in card
    assert (tmp_path / "newest" / "tokenizer.json").is_file()
    digests = json.loads((tmp_path / "newest" / "rlora.json").read_text()).get("base", {})
    assert other_base(tmp_path / "newest", "toy", digests) == ""
    (tmp_path / "newest" / "rlora.json").unlink()
    assert other_base(tmp_path / "newest", "toy", digests) == ""
    assert "was trained on the base" in other_base(tmp_path / "newest", "bundled", digests)
    assert evaluated(parse(["--adapter", str(tmp_path / "newest")])).model.name == "toy"
    assert "training reward in the step before" in (tmp_path / "third" / "README.md").read_text()


def test_the_base_of_an_export_has_a_name_that_others_load(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RLORA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert loadable_name("Qwen/Qwen3-1.7B-Base") == "Qwen/Qwen3-1.7B-Base"
    assert loadable_name("models/mine") == str(tmp_path / "models" / "mine")
    assert loadable_name("bundled") == str(tmp_path / "cache" / "SmolLM2-135M-Instruct-Q4_1-bf16")
    assert short_name("/elsewhere/SmolLM2-135M-Instruct-Q4_1-bf16") == "bundled"
    assert short_name("HuggingFaceTB/SmolLM2-135M-Instruct") == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_what_is_exported_may_be_read_by_whom_the_umask_lets(straight, tmp_path) -> None:
    for name, options in (("adapter", []), ("merged", ["--merge"])):
        main(["export", str(straight), "--to", str(tmp_path / name), *options])
        (tmp_path / name / "usual").touch()
        usual = (tmp_path / name / "usual").stat().st_mode
        assert {path.name for path in (tmp_path / name).iterdir() if path.stat().st_mode != usual} == set()


def test_a_merged_model_says_what_the_adapter_says(straight, tmp_path, capsys) -> None:
    main(["export", str(straight), "--to", str(tmp_path / "merged"), "--merge"])
    assert "Merged in fp32 and rounded to float32" in capsys.readouterr().out
    folder, lora = model_dir(TOY_MODEL), LoraConfig()
    adapted = Policy.load(folder, TOY_MODEL, lora, seed=0, init_adapter=straight / "adapter")
    merged = Policy.load(tmp_path / "merged", TOY_MODEL, lora, seed=0)
    tokens = torch.tensor([[3, 5, 7, 9, 11]])
    with torch.no_grad():
        base = Policy.load(folder, TOY_MODEL, lora, seed=0).next_token_logits(tokens)
        assert torch.allclose(adapted.next_token_logits(tokens), merged.next_token_logits(tokens), atol=1e-5)
        assert not torch.allclose(base, merged.next_token_logits(tokens), atol=1e-3)


def test_rounding_that_would_change_the_policy_keeps_fp32(straight, tmp_path, monkeypatch, capsys) -> None:
    """The toy's own run is in fp32; here it is exported as if its base were bf16, with no tolerance at all."""
    config = straight / "checkpoints" / "step-000005"
    run_dir = tmp_path / "run"
    shutil.copytree(straight, run_dir)
    from rlora.store.checkpoint import CheckpointFolder

    real = CheckpointFolder.newest

    def as_bf16(self, *arguments):
        found = real(self, *arguments)
        assert found is not None
        found.config["model"]["dtype"] = "bfloat16"
        return found

    monkeypatch.setattr(CheckpointFolder, "newest", as_bf16)
    monkeypatch.setattr(export, "MAX_KL", 0.0)
    main(["export", str(run_dir), "--to", str(tmp_path / "merged"), "--merge"])
    said = capsys.readouterr().out
    assert "Merged weights are fp32" in said
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert config.is_dir()
    monkeypatch.setattr(export, "MAX_KL", 1.0)
    main(["export", str(run_dir), "--to", str(tmp_path / "rounded"), "--merge"])
    assert "rounded to bfloat16" in capsys.readouterr().out
    tensors = load_file(tmp_path / "rounded" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_merging_adds_scale_times_b_a(tmp_path, toy_dir) -> None:
    policy = Policy.load(toy_dir, TOY_MODEL, LoraConfig(rank=2, alpha=8.0), seed=1)
    tensors = {name: torch.randn(tensor.shape) for name, tensor in policy.flat.tensors().items()}
    save_merged(toy_dir, TOY_MODEL, policy.config, tensors, tmp_path / "merged", "float32")
    name = "model.layers.1.mlp.down_proj"
    old = load_file(toy_dir / "model.safetensors")[f"{name}.weight"].float()
    new = load_file(tmp_path / "merged" / "model.safetensors")[f"{name}.weight"]
    assert torch.allclose(new, old + 4.0 * tensors[f"{name}.lora_B"] @ tensors[f"{name}.lora_A"], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--to", "{run}"], "is not empty"),
        (["{run}", "--to", "{new}", "--step", "77"], "no checkpoint of step 77"),
        (["{new}", "--to", "{new}"], "holds no config.json"),
    ],
)
def test_what_cannot_be_exported_is_refused(straight, tmp_path, capsys, arguments, message) -> None:
    filled = [one.format(run=straight, new=tmp_path / "new") for one in arguments]
    with pytest.raises(SystemExit) as ended:
        main(["export", *filled])
    assert ended.value.code == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_command_explains_itself() -> None:
    done = subprocess.run([sys.executable, "-m", "rlora"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "export" in done.stdout
    wrong = subprocess.run(
        [sys.executable, "-m", "rlora", "exprot"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert wrong.returncode == 2
    assert "rlora has no command 'exprot'" in wrong.stderr
    for name in ("runs", "export"):
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0


def test_an_adapter_file_that_is_no_safetensors_is_refused(straight, tmp_path) -> None:
    from rlora.errors import AdapterError
    from rlora.lora.peft.peft_format import load_adapter_tensors

    shutil.copytree(straight / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / "rlora.json").unlink()  # as if it came from elsewhere
    (tmp_path / "adapter" / ADAPTER).write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(AdapterError, match="cannot be read"):
        load_adapter_tensors(tmp_path / "adapter", LoraConfig(), {})
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter" / ADAPTER)
    with pytest.raises(AdapterError, match="has 1 tensors the policy lacks"):
        load_adapter_tensors(tmp_path / "adapter", LoraConfig(), {})
