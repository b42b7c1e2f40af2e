"""`--quiet`: a line at the start, a line at the end, and errors and warnings alone in between."""

import re
import sys

import pytest
from support.runs import rows, toy
from support.terminals import terminal

from rlora import config
from rlora.commands.train import main
from rlora.config import with_switches
from rlora.loop import run
from rlora.system.stages import Screen
from rlora.tracking import TrackingConfig

RATE = ["--optimizer.learning-rate", "1e-3"]  # of which no warning is due


@pytest.mark.unit
def test_quiet_has_a_short_name_where_there_is_the_long_one() -> None:
    options = {"tracking.quiet": bool, "seed": int}
    assert with_switches(["--quiet", "--seed", "1"], options) == ["--tracking.quiet", "True", "--seed", "1"]
    assert with_switches(["--no-quiet"], options) == ["--tracking.quiet", "False"]
    assert with_switches(["--quiet=no"], options) == ["--tracking.quiet", "False"]
    assert with_switches(["--quiet", "false"], options) == ["--tracking.quiet", "False"]
    assert with_switches(["--quiet", "1"], {"seed": int}) == ["--quiet", "1"]
    assert config.option_types(TrackingConfig)["quiet"] is bool


@pytest.mark.loop
def test_a_quiet_run_says_how_it_begins_and_ends(tmp_path, capsys) -> None:
    main(["arithmetic", "--preset", "toy", "--run-dir", str(tmp_path / "run"), "--num-steps", "2", "--quiet", *RATE])
    said = capsys.readouterr()
    first, *warnings, last = said.err.splitlines()
    assert said.out == ""
    assert first.startswith("toy: rank 1 on all layers, 2,048 numbers")
    assert re.fullmatch(rf"{tmp_path}/run: 2 steps in [\d.]+ s; held-out, greedy: [\d.]+ % .*, difference .*", last)
    assert [line for line in warnings if not line.startswith("Warning: ")] == []
    assert len(rows(tmp_path / "run")) == 2
    assert (tmp_path / "run" / "log.txt").is_file()


@pytest.mark.loop
def test_a_quiet_run_draws_nothing_on_a_terminal_and_says_what_is_wrong(tmp_path, monkeypatch) -> None:
    with terminal(monkeypatch) as found:
        monkeypatch.setattr(sys, "stderr", found.stream)
        run(toy(tmp_path / "run", num_steps=1, tracking=TrackingConfig(quiet=True)))
    assert "Proving" not in found.text
    assert "training" not in found.text.replace("training temperature", "")
    assert "step    1/1" not in found.text
    assert "Warning: the learning rate 1.0e-02 is above" in found.text.replace("\n", " ").replace("  ", " ")
    assert "held-out, greedy: " in found.text.replace("\n", " ")


@pytest.mark.unit
def test_a_quiet_screen_has_no_stage_and_no_note(capsys) -> None:
    screen = Screen(sys.stderr, is_quiet=True)
    with screen.stage("Loading"):
        screen.note("a detail")
        screen.say("a warning")
    assert capsys.readouterr().err == "a warning\n"
