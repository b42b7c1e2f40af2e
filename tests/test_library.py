"""rlora as a library: what docs/library.md shows is run as it stands there."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
from support.policies import ROOT

import rlora
from rlora.errors import ConfigError, DataError, RunDirError

PAGE = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)


def problems(count: int) -> list[rlora.Problem]:
    return [
        rlora.Problem(id=str(n), question=f"What is {n} + 1?", answer=str(n + 1), source="mine") for n in range(count)
    ]


def config(tmp_path, **changes) -> rlora.RunConfig:
    toy = rlora.find_recipe("arithmetic").presets["toy"]
    return replace(toy, run_dir=str(tmp_path / "run"), num_steps=2, **changes)


@pytest.mark.unit
def test_every_public_name_is_there() -> None:
    for name in dir(rlora):
        assert getattr(rlora, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        rlora.nothing  # noqa: B018 - the access is what is tested


@pytest.mark.unit
def test_records_come_without_pytorch() -> None:
    script = "import sys, rlora; rlora.Problem; rlora.RloraError; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


@pytest.mark.loop
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_pages_examples_run(number, tmp_path) -> None:
    code = [line for line in EXAMPLES[number].splitlines() if line.strip()]
    assert number > 0 or len(code) <= 25
    (tmp_path / "example.py").write_text(EXAMPLES[number], encoding="utf-8")
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    if number == 0:
        first, second = done.stdout.splitlines()
        assert re.fullmatch(r"What is \d \+ \d\? -> '.*' [01]\.0 \d was wanted", first)
        assert second.startswith("held out: {'accuracy': ")
    assert list(tmp_path.glob("**/adapter_model.safetensors"))


@pytest.mark.loop
def test_a_run_goes_on_with_its_problems_and_its_reward_is_part_of_it(tmp_path) -> None:
    def longer(completion: str, problem: rlora.Problem) -> float:
        return len(completion) / 100

    given, test = problems(12), problems(16)[12:]
    first = rlora.run(config(tmp_path), given, test=test, reward=longer)
    assert [row["step"] for row in first.metrics()] == [0, 1]
    rewards = {row["reward"] for row in first.rollouts(0)}
    assert rewards == {len(row["text"]) / 100 for row in first.rollouts(0)}
    assert first.summary()["num_problems"] == 4
    again = rlora.run(replace(config(tmp_path), num_steps=3), given, test=test, reward=longer)
    assert [row["step"] for row in again.metrics()] == [0, 1, 2]
    with pytest.raises(RunDirError, match="reward: "):
        rlora.run(replace(config(tmp_path), num_steps=4), given, test=test, reward=lambda c, p: 0.0)
    with pytest.raises(RunDirError, match=r"no rollouts of step 9; there are 3 steps"):
        again.rollouts(9)
    with pytest.raises(RunDirError, match="exists; choose another folder"):
        again.save_policy(tmp_path)
    with pytest.raises(DataError, match="given by a script"):
        rlora.run(replace(config(tmp_path), data=rlora.DataConfig(name="given")))


@pytest.mark.unit
def test_bad_input_is_refused_before_anything_is_written(tmp_path) -> None:
    with pytest.raises(DataError, match="too few to hold out a tenth"):
        rlora.run(config(tmp_path), problems(5))
    with pytest.raises(DataError, match="two problems have the id '3'"):
        rlora.run(config(tmp_path), problems(20), test=problems(5)[3:4])
    with pytest.raises(DataError, match="without problems"):
        rlora.run(config(tmp_path), test=problems(3))
    with pytest.raises(ConfigError, match=r"it must be a function of \(completion, problem\), or a Judge"):
        rlora.run(config(tmp_path), problems(20), reward=3)
    with pytest.raises(ConfigError, match=r"cannot be called with \(completion, problem\)"):
        rlora.run(config(tmp_path), problems(20), reward=lambda completion: 1.0)
    assert not (tmp_path / "run").exists()
    with pytest.raises(RunDirError, match="is not a run directory"):
        rlora.Results(tmp_path)
