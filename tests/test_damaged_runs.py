"""A run directory and an adapter that somebody or something changed: refused by name, or gone on with and equal."""

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from support import evaluations
from support.engines import Around
from support.runs import SIZE, assert_same_run, rows, stopped, toy

from rlora.commands import runs
from rlora.commands.cli import main
from rlora.errors import AdapterError, RloraError, RunDirError, WriteError
from rlora.evaluation.run import evaluate_benchmarks
from rlora.loop import run
from rlora.lora.config import LoraConfig
from rlora.lora.peft.peft_format import check_adapter
from rlora.sampler.build import build_sampler
from rlora.store.results import Results
from rlora.system.records import line_of

pytestmark = pytest.mark.loop


@pytest.fixture
def halfway(straight, tmp_path) -> Path:
    """Return a copy of a run as if it was stopped in step 4: checkpoints of 3 and 4, rows and rollouts of 0 to 3."""
    run_dir = tmp_path / "run"
    shutil.copytree(straight, run_dir)
    (run_dir / "summary.json").unlink()
    shutil.rmtree(run_dir / "checkpoints" / "step-000005")
    return run_dir


def flip(path: Path, place: int = -3) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def test_an_adapter_of_which_a_bit_changed_is_refused_wherever_it_is_read(straight, tmp_path, capsys) -> None:
    shutil.copytree(straight, tmp_path / "run")
    adapter = tmp_path / "run" / "adapter"
    flip(adapter / "adapter_model.safetensors")
    refused = pytest.raises((AdapterError, RunDirError), match=r"adapter_model\.safetensors was changed: its SHA-256")
    with refused:
        evaluate_benchmarks(evaluations.toy(tmp_path / "eval", run=str(tmp_path / "run"), samples=1))
    with refused:
        evaluate_benchmarks(evaluations.toy(tmp_path / "eval", adapter=str(adapter), samples=1))
    with refused:
        run(toy(tmp_path / "new", **SIZE, init_adapter=str(adapter)))
    with refused:
        Results(tmp_path / "run").save_policy(tmp_path / "copy")
    main(["export", str(tmp_path / "run"), "--to", str(tmp_path / "out")])  # made from the checkpoint, which is whole
    name = "adapter_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (straight / "adapter" / name).read_bytes()
    assert "step 5" in capsys.readouterr().out


def test_a_scale_that_changed_is_refused_and_an_adapter_of_before_is_read(straight, tmp_path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(straight / "adapter", adapter)
    check_adapter(adapter, LoraConfig())
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "elsewhere"}))
    check_adapter(adapter, LoraConfig())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 33.0}))
    with pytest.raises(AdapterError, match=r"lora_alpha=33.0, and rlora\.json says 32\.0"):
        check_adapter(adapter, LoraConfig(alpha=33.0))
    (adapter / "rlora.json").write_text('{"version": 5}')
    check_adapter(adapter, LoraConfig(alpha=33.0))


def test_a_log_of_which_a_row_was_changed_or_lost_is_named(halfway) -> None:
    metrics, config = halfway / "metrics.jsonl", toy(halfway, **SIZE)
    whole = metrics.read_text().splitlines(keepends=True)[:4]
    for lines, message in (
        ([whole[0].replace('"reward/mean": 0', '"reward/mean": 1'), *whole[1:]], "line 1: it was changed"),
        ([whole[0], *whole[2:]], "line 2 is of step 2, the one before of 0"),
        ([whole[0], whole[0], *whole[1:]], "line 2 is of step 0, the one before of 0"),
        ([whole[0].rstrip(), *whole[1:]], "line 1: Extra data"),
        (whole[:2], "ends with step 1, and the run goes on from step 4"),
    ):
        metrics.write_text("".join(lines))
        with pytest.raises(RunDirError, match=message):
            run(config)


def test_what_ends_a_run_and_what_sums_it_up_is_in_the_checkpoint(halfway, straight, capsys) -> None:
    metrics = halfway / "metrics.jsonl"
    whole = rows(halfway)
    changed = [{**row, "reward/mean": 1.0, "agreement/kl_k3": 9.0} for row in whole[1:4]]  # with checksums that fit
    metrics.write_text("".join(line_of(row) + "\n" for row in changed))
    run(toy(halfway, **SIZE, stop_at_reward=0.99))
    assert "lacks the rows of the first 1 steps" in capsys.readouterr().err
    assert rows(halfway)[-1]["step"] == 4
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (halfway, straight)]
    for name in ("num_steps", "max_kl_k3", "first_kl_k3", "max_mean_abs_logprob_difference"):
        assert summaries[0][name] == summaries[1][name]
    assert summaries[0]["num_steps"] == 5


def test_a_run_of_before_there_were_checksums_goes_on(tmp_path, straight) -> None:
    run_dir = tmp_path / "run"
    stopped(toy(run_dir, **SIZE), after=3)
    for path in (run_dir / "rollouts").glob("*.tokens"):
        path.unlink()  # nor were there the trainer's numbers of each token
    for path in [run_dir / "metrics.jsonl", *(run_dir / "rollouts").iterdir()]:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "crc"}) + "\n" for line in lines))
    for path in (run_dir / "checkpoints").glob("*/state.json"):
        state = json.loads(path.read_text())
        del state["tally"]
        path.write_text(json.dumps(state))
        manifest = json.loads((path.parent / "manifest.json").read_text())
        import hashlib

        data = path.read_bytes()
        manifest["files"]["state.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (path.parent / "manifest.json").write_text(json.dumps(manifest))
    (run_dir / "adapter" / "rlora.json").write_text('{"version": 3, "base_model": "toy"}')
    config = dataclasses.replace(toy(run_dir, **SIZE))
    run(config)
    for step in range(3):  # as they were; those of the steps since have checksums
        assert "crc" not in (run_dir / "rollouts" / f"step-{step:06d}.jsonl").read_text()
        for path in (straight / "rollouts").glob(f"step-{step:06d}.*"):
            shutil.copy(path, run_dir / "rollouts")
    assert_same_run(run_dir, straight)


class Moves(Around):
    """Moves a run's directory, or removes it, before it samples for the third step."""

    def __init__(self, sampler, run_dir: Path, target: Path | None):
        self._sampler, self._run_dir, self._target = sampler, run_dir, target

    def load(self, adapters) -> None:
        self._sampler.load(adapters)

    def sample(self, requests, sampling, *, seed):
        if requests[0].key[:2] == ("train", 2):
            if self._target is None:
                shutil.rmtree(self._run_dir)
            else:
                self._run_dir.rename(self._target)
        return self._sampler.sample(requests, sampling, seed=seed)


@pytest.mark.parametrize("is_removed", [False, True])
def test_a_run_directory_that_goes_away_ends_the_run_and_none_is_begun_in_its_place(
    tmp_path, straight, is_removed
) -> None:
    run_dir, target = tmp_path / "run", tmp_path / "moved"
    config = toy(run_dir, **SIZE)
    with pytest.raises(WriteError, match=f"{run_dir} was .*removed while this process was writing there"):
        run(config, make_sampler=lambda spec: Moves(build_sampler(spec), run_dir, None if is_removed else target))
    assert not run_dir.exists()
    if not is_removed:
        target.rename(run_dir)
        run(config)
        assert_same_run(run_dir, straight)


def nest(path: Path) -> None:
    path.write_text('{"a":' * 200_000)


def as_a_file(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.write_text("")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("run.json", lambda path: path.write_text("{}"), "run.json holds no id"),
        ("run.json", nest, "run.json cannot be read: it is nested too deeply"),
        ("config.json", nest, "config.json cannot be read: it is nested too deeply"),
        ("config.json", lambda path: path.write_bytes(b'{"\xff": 1}'), "config.json cannot be read"),
        ("environment.json", lambda path: path.write_text("[]"), "environment.json cannot be read"),
        ("metrics.jsonl", lambda path: (path.unlink(), path.mkdir()), "metrics.jsonl cannot be read: Is a directory"),
        ("adapter", as_a_file, "could not be written"),
        ("rollouts", as_a_file, "could not be written"),
        ("checkpoints", as_a_file, "checkpoints cannot be read: Not a directory"),
    ],
)
def test_what_is_wrong_in_a_run_directory_is_an_error_of_our_own(halfway, name, damage, message) -> None:
    damage(halfway / name)
    with pytest.raises(RloraError, match=message):
        run(toy(halfway, **SIZE))


def test_a_directory_that_cannot_be_written_is_an_error_of_our_own(halfway, monkeypatch) -> None:
    real = Path.open

    def refused(self, mode="r", *arguments, **options):
        if self.name == "lock" and mode != "r":
            raise OSError(errno.EROFS, "Read-only file system")
        if self.name == "lock":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(self, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(RunDirError, match=r"cannot be written .Read-only file system"):
        run(toy(halfway, **SIZE))
    state = runs.state_of(halfway)
    assert state.state == "broken"
    assert "lock cannot be read: Permission denied" in state.why


def test_one_damaged_run_hides_no_other(halfway, straight, tmp_path, capsys) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(straight, folder / "[red]fine")
    damages = {"no-reward": '{"step": 0}\n', "null": "null\n", "five": "5\n"}
    for name, text in damages.items():
        shutil.copytree(halfway, folder / name)
        (folder / name / "metrics.jsonl").write_text(text)
    shutil.copytree(straight, folder / "odd")
    (folder / "odd" / "summary.json").write_text('{"policy": 3}')
    config = json.loads((folder / "odd" / "config.json").read_text())
    config |= {"model": {"name": "m[/b]\x1b]0;owned\x07x"}, "data": 7, "num_steps": "many"}
    (folder / "odd" / "config.json").write_text(json.dumps(config))
    os.utime(folder / "odd" / "metrics.jsonl", (4e9, 4e9))
    main(["runs", str(folder)])
    table = capsys.readouterr().out
    for word in ("[red]fine", "finished", "m[/b]", "0 s ago", "broken"):
        assert word in table
    assert "\x1b" not in table
    assert "\x07" not in table
