"""`rlora check RECIPE` on the toy model: what a run would see, and OK or what to change."""

import re

import pytest
from support.policies import ROOT
from support.sick import taught, write_rows
from support.supervised import sums, write

from rlora.commands.cli import main

pytestmark = pytest.mark.loop
RECIPE = str(ROOT / "recipes" / "arithmetic.py")
SOUND = ("--preset", "toy", "--optimizer.learning-rate", "1e-3")


@pytest.fixture(scope="module")
def adder(tmp_path_factory) -> str:
    return taught(tmp_path_factory.mktemp("adder")).name


def checked(capsys, *arguments: str, code: int = 0) -> str:
    """Return what a check of the arithmetic recipe says, one line a paragraph."""
    if code:
        with pytest.raises(SystemExit) as ended:
            main(["check", *arguments])
        assert ended.value.code == code
    else:
        main(["check", *arguments])
    return re.sub(r"\n +", " ", capsys.readouterr().out)


def test_a_sound_run_is_ok_with_what_it_sees_and_takes(adder, tmp_path, capsys) -> None:
    where = ("--run-dir", str(tmp_path / "run"))
    said = checked(capsys, RECIPE, *SOUND, "--model", adder, "--num-steps", "100", *where)
    assert said.endswith("\nOK\n")
    assert "=== arithmetic/train/" in said  # one prompt with a completion and its verdict
    assert said.count("ended by end") == said.count("\nverdict ") == 1
    assert "sampled: 8 problems x 16 completions, temperature 1, at most 8 tokens" in said
    low, high = map(float, re.search(r"learned from: .* \[([\d.]+), ([\d.]+)\]", said).groups())
    assert 30 < low < high <= 100
    assert re.search(r"verdicts: \d+ correct, \d+ wrong", said)
    assert re.search(r"sampling: [\d,]+ tokens/s", said)
    assert re.search(r"time: about [\d.]+ (s|min) for 100 steps \([\d.]+ (s|min) sampling, [\d.]+ (s|min) tr", said)
    assert re.search(r"disk: about [\d.]+ MB \([\d.]+ GB free\)", said)
    assert "versions: rlora 0.1.0, torch " in said
    assert not (tmp_path / "run").exists()


def test_a_base_that_never_solves_anything_is_seen(tmp_path, capsys) -> None:
    hard = [{"question": f"What is {n} + 98765?", "answer": str(n + 98765)} for n in range(30)]
    data = ("--train", write_rows(tmp_path / "hard.jsonl", hard), "--sampler.max-prompt-tokens", "200")
    said = checked(capsys, RECIPE, *SOUND, *data, "--samples-per-problem", "4", code=1)
    assert "sampled: 8 problems x 4 completions" in said
    assert "no_signal: only 0 % of the groups (at most 32 %) have rewards that differ: of 8 groups 0 are all" in said
    assert "8 all wrong. To do: See what is said" in said


def test_too_short_a_limit_is_seen(adder, capsys) -> None:
    said = checked(capsys, RECIPE, *SOUND, "--model", adder, "--sampling.max-tokens", "1", code=1)
    assert "truncation: 100 % of the completions are cut off: they hit the limit of 1 tokens" in said
    assert "Raise --sampling.max-tokens (now 1; try 2)" in said


def test_a_rate_outside_its_window_is_seen_without_a_sample(capsys) -> None:
    said = checked(capsys, "arithmetic", "--preset", "toy", "--no-sample", code=1)
    assert "1 finding:\nrate: the learning rate 1.0e-02 is above the known window" in said
    assert "sampled:" not in said
    assert checked(capsys, "arithmetic", *SOUND, "--sample", "0").endswith(
        "OK, as far as it is known without a sample\n"
    )


def test_golds_in_words_are_seen_before_the_run(adder, tmp_path, capsys) -> None:
    words = [{"question": f"What is {n} + 1?", "answer": f"it is {n + 1} I think"} for n in range(30)]
    data = ("--train", write_rows(tmp_path / "words.jsonl", words), "--sampler.max-prompt-tokens", "200")
    said = checked(capsys, RECIPE, *SOUND, *data, "--model", adder, code=1)
    assert "golds: 27 of 27 problems have answers that are only compared letter by letter" in said
    assert "e.g. 'it is 1 I think' of words/1" in said


def test_a_gpu_that_is_not_here_is_planned_and_not_sampled_on(capsys) -> None:
    said = checked(capsys, RECIPE, "--preset", "gpu", "--model.name", "toy", "--gpu", "24", code=0)
    assert "Memory of a GPU of 24 GB" in said
    assert "Nothing is sampled: there is no GPU here" in said


def test_how_many_are_sampled_must_be_a_number(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", RECIPE, *SOUND, "--sample", "-1"])
    assert ended.value.code == 1
    assert "--sample is -1; it must be at least 0" in capsys.readouterr().err


def test_a_supervised_run_is_checked_with_its_data_and_its_time(tmp_path, capsys) -> None:
    train = ("--train", str(write(tmp_path / "sums.jsonl", sums())), "--preset", "toy")
    said = checked(capsys, "sft", *train, "--optimizer.learning-rate", "1.1e-2")
    assert "54 examples of" in said
    assert re.search(r"lengths: \d+ tokens in the median, \d+ at most; 0 % reach --max-tokens 256", said)
    assert re.search(r"training: [\d,]+ tokens/s; about [\d.]+ (s|min) for 14 updates", said)
    assert said.endswith("\nOK\n")
    said = checked(capsys, "sft", *train, "--max-tokens", "35", "--optimizer.learning-rate", "1", code=1)
    assert "2 findings:\nrate: the learning rate 1.0e+00 is above" in said
    assert "of the examples reach the limit of 35 tokens" in said
