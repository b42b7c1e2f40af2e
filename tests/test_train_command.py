"""`rlora train`: recipes by name, by file and by module, and from a wheel in an empty folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.policies import ROOT
from support.recipes import presets

from rlora.commands.cli import main
from rlora.errors import ConfigError
from rlora.recipes import RECIPES, find_any_recipe, find_recipe

TOY = ["--preset", "toy", "--num-steps", "1", "--evaluation.every", "0", "--evaluation.num-problems", "4"]
OWN = """\"\"\"Two steps of sums.\"\"\"
from dataclasses import replace
from rlora.recipes.arithmetic import TOY_PRESET
PRESETS = {"toy": replace(TOY_PRESET, num_steps=2)}
"""


@pytest.mark.unit
@pytest.mark.parametrize("name", RECIPES)
def test_a_script_and_a_name_are_the_same_recipe(name) -> None:
    script = ROOT / "recipes" / f"{RECIPES[name].rpartition('.')[2]}.py"
    assert find_any_recipe(name).presets == presets(script) == find_any_recipe(str(script)).presets


@pytest.mark.unit
def test_the_command_lists_its_recipes(capsys) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["train", "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    for name in RECIPES:
        assert f"  {name} " in text
    with pytest.raises(SystemExit) as exit_info:
        main(["train"])
    assert exit_info.value.code == 2


@pytest.mark.unit
def test_a_recipes_help_is_called_by_its_command(capsys) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["train", "gsm8k", "--help"])
    assert exit_info.value.code == 0
    assert "usage: rlora train gsm8k" in capsys.readouterr().out


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gsmk8", "there is no recipe 'gsmk8'; it must be one of arithmetic, gsm8k, math, deepmath, sft, a file"),
        ("rlora.recipes.none", "there is no recipe 'rlora.recipes.none'"),
        ("none.py", "none.py is not a file; name a recipe: arithmetic"),
        ("json", "json is not a recipe of a training run"),
    ],
)
def test_what_is_no_recipe_is_refused(name, message) -> None:
    with pytest.raises(ConfigError, match=message):
        find_recipe(name)


@pytest.mark.unit
def test_what_a_recipe_cannot_import_is_not_hidden(tmp_path, monkeypatch) -> None:
    (tmp_path / "needy.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        find_recipe("needy")


@pytest.mark.loop
def test_a_module_of_ones_own_is_trained_and_goes_on(tmp_path, monkeypatch) -> None:
    (tmp_path / "sums.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    assert find_recipe("sums").description == "Two steps of sums."
    for steps in (1, 2):
        main(["train", "sums", "--run-dir", str(tmp_path / "run"), "--num-steps", str(steps)])
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.loop
def test_a_wheel_runs_a_recipe_from_an_empty_folder(tmp_path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = tmp_path / "source"  # a copy: building writes into it
    shutil.copytree(ROOT / "rlora", source / "rlora", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path / "wheels"), str(source)]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheels").glob("rlora-*.whl")
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(tmp_path / "site"), str(wheel)]
    done = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (tmp_path / "empty").mkdir()
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import rlora; print(rlora.__file__)\n"
        "from rlora.commands.cli import main; main()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "site"), "train", "arithmetic", *TOY, "--run-dir", "run"]
    done = subprocess.run(command, cwd=tmp_path / "empty", capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[0]).is_relative_to(tmp_path / "site")
    assert (tmp_path / "site" / "rlora" / "py.typed").is_file()
    assert json.loads((tmp_path / "empty" / "run" / "summary.json").read_text())["num_steps"] == 1
