"""What a new user sees of a run: a line a step, what was said before and after, and what to do next."""

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console
from support.runs import toy

from rlora.loop import run
from rlora.summary import next_commands
from rlora.system.stages import Screen
from rlora.text import shortened
from rlora.tracking.console import Display, step_line

VALUES = {
    "step": 11,
    "reward/mean": 0.1234,
    "agreement/kl_k3": 1.04e-3,
    "rollout/truncated_share": 0.41,
    "throughput/sampled_tokens_per_second": 750.2,
    "seconds/step": 13.42,
    "seconds/sample": 9.1,
    "seconds/train": 4.0,
}


@pytest.mark.unit
def test_a_steps_line_has_at_most_78_characters() -> None:
    line = step_line(VALUES, num_steps=28, seconds_left=215)
    assert line == "step   12/28  reward 0.123  KL 1.0e-03  cut  41 %    750 tokens/s   left 3:35"
    own = step_line(VALUES | {"evaluation/accuracy": 0.62}, num_steps=28, seconds_left=215, has_shares=False)
    assert "held-out 0.620" in own
    scored = step_line(VALUES | {"evaluation/accuracy": 0.62}, num_steps=28, seconds_left=4000)
    assert scored == "step   12/28  reward 0.123  KL 1.0e-03  cut  41 %  held-out 62.0 %  left 1h06"
    extreme = VALUES | {
        "step": 123455,
        "reward/mean": -12345.678,
        "throughput/sampled_tokens_per_second": 123456.0,
        "evaluation/accuracy": -12.3,
    }
    for values in (extreme, {name: value for name, value in extreme.items() if "kl" not in name}):
        for accuracy in ({}, {"evaluation/accuracy": 1.0}):
            line = step_line(values | accuracy, num_steps=999_999, seconds_left=10**6)
            assert len(line) <= 78
            assert "step 123456/999999  reward -12345.678" in line
            assert "held-out" in line
    wide = step_line(VALUES, num_steps=28, seconds_left=215, width=150)
    assert wide.endswith("left 3:35  13.4 s (sample 9.1 train 4.0)")


@pytest.mark.unit
def test_a_text_is_shortened_to_one_line() -> None:
    assert shortened("So\n\n  it is\t112.") == "So it is 112."
    assert len(shortened("many words " * 50)) <= 52
    assert shortened("many words " * 50).endswith(" ...")


@pytest.mark.unit
def test_the_next_commands_begin_with_the_activation_where_rlora_is_not_on_the_path(tmp_path, monkeypatch) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    lines = list(next_commands(Path("runs/my run")))
    assert lines[:2] == ["Next:", "  source venv/bin/activate"]
    assert "  rlora eval --run 'runs/my run' --benchmark aime2024,aime2025,aime2026" in lines
    rlora = tmp_path / "venv" / "bin" / "rlora"
    rlora.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(rlora.parent))
    assert "activate" not in "\n".join(next_commands(Path("runs/a")))


@pytest.mark.loop
def test_on_a_terminal_the_phase_counts_its_seconds(monkeypatch) -> None:
    stream = io.StringIO()
    screen = Screen(stream)
    screen.console = Console(file=stream, force_terminal=True, width=120)
    now = [100.0]
    monkeypatch.setattr("rlora.tracking.console.time.monotonic", lambda: now[0])
    with Display(3, screen) as display:
        display.phase("sample")
        for now[0] in (107.2, 131.0):
            display._progress.refresh()
    assert "sample 7 s" in stream.getvalue()
    assert "sample 31 s" in stream.getvalue()


def test_a_runs_end_shows_what_was_said_before_and_after_and_what_to_do_next(tmp_path, capsys) -> None:
    run_dir = run(toy(tmp_path / "run", num_steps=1))
    said = capsys.readouterr().err
    assert "held-out 0.0 %" in next(line for line in said.splitlines() if line.startswith("step    1/1"))
    assert said.count("\n  before  reward ") == said.count("\n  after   reward ") == 2
    assert f"  rlora export {run_dir} --to {run_dir}-adapter" in said
    assert "is format" not in said


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.unit
def test_lines_break_between_words_on_a_terminal_and_not_at_all_in_a_file(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    text = "toy: rank 1 on all layers, 2,048 numbers, on cpu; run directory runs/toy"
    terminal, file = Terminal(), io.StringIO()
    Screen(terminal).say(text)
    Screen(file).say(text)
    lines = terminal.getvalue().splitlines()
    assert len(lines) == 2
    assert " ".join(line.strip() for line in lines) == text
    assert file.getvalue() == f"{text}\n"
