"""`rlora check` on the toy model: what is printed is what the model got, said, and was judged by."""

import pytest
from support.policies import ROOT, TOY_MODEL
from support.runs import toy

from rlora.commands.cli import main
from rlora.loop import run
from rlora.model.sources import load_tokenizer, model_dir
from rlora.tasks import task
from rlora.tasks.prompts import PromptConfig, PromptRenderer
from rlora.train.optimizer import OptimizerConfig

pytestmark = pytest.mark.loop


def test_prompts_completions_and_verdicts_are_printed(capsys) -> None:
    main(["check", "--preset", "toy", "--limit", "2", "--samples", "3"])
    said = capsys.readouterr().out
    tokenizer = load_tokenizer(model_dir(TOY_MODEL), TOY_MODEL)
    renderer = PromptRenderer(tokenizer, PromptConfig(), instruction="")
    for problem in task("digits").load("test")[:2]:
        prompt = renderer.render(problem)
        assert f"=== {problem.id}, plain template, {len(prompt.token_ids)} tokens, gold '{problem.answer}'" in said
        assert prompt.text in said
    assert said.count("ended by") == 6
    assert said.count("\nverdict ") == 6
    assert said.count("\nextracted ") == 6


def test_wrong_options_are_explained(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", "--preset", "toy", "--benchmark", "aime1066"])
    assert ended.value.code == 1
    assert "the data set 'aime1066' is unknown" in capsys.readouterr().err


def test_a_recipe_is_checked_without_loading_weights(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", str(ROOT / "recipes" / "arithmetic.py"), "--preset", "toy", "--lora.rank", "2", "--no-sample"])
    assert ended.value.code == 1  # the rate is outside its window
    said = capsys.readouterr().out
    assert "toy: rank 2 on all layers, alpha 32, lora: 4,096 numbers, 5.1 % of the base's 80,832" in said
    assert "digits: 4 iterations of 4 problems x 16 samples of at most 8 tokens" in said
    assert "learning rate 1.0e-02 (alpha x rate 3.2e-01); to start from: 9.0e-04 (alpha x rate 2.9e-02), window" in said
    assert "Warning: the learning rate 1.0e-02 is above the known window, 3.0e-04 to 3.0e-03" in said
    assert "rollouts on disk: at most 0.07 MB, if every completion has 8 tokens" in said  # 4 x 4 x 16 x 8 x 34 bytes
    sound = ["--preset", "toy", "--optimizer.learning-rate", "1e-3", "--no-sample"]
    main(["check", str(ROOT / "recipes" / "arithmetic.py"), *sound])
    assert "Warning" not in capsys.readouterr().out


def test_a_model_and_a_run_are_told_their_rates(capsys, tmp_path) -> None:
    main(["check", "--preset", "toy"])
    said = capsys.readouterr().out
    assert "rank 1 on all layers: 2,048 numbers" in said
    assert "learning rate to start from, LoRA, 50 updates: 9.0e-04" in said
    assert "learning rate to start from, full fine-tuning, 50 updates: 3.0e-04" in said
    run(toy(tmp_path / "run", num_steps=1, optimizer=OptimizerConfig(learning_rate=2e-2, b_rate_ratio=0.25)))
    assert "Warning: the learning rate 5.0e-03 is above the known window" in capsys.readouterr().err
    main(["check", "--preset", "toy", "--run", str(tmp_path / "run")])
    assert "digits: 1 iterations of 4 problems" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recipe", "message"),
    [("nowhere.py", "is not a file; name a recipe"), ("evaluate.py", "is not a recipe of a training run")],
)
def test_what_is_no_recipe_is_refused(recipe, message, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", str(ROOT / "recipes" / recipe)])
    assert ended.value.code == 1
    assert message in capsys.readouterr().err


def test_a_full_fine_tunings_plan_is_of_every_weight_and_at_its_own_rate(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["check", str(ROOT / "recipes" / "arithmetic.py"), "--preset", "toy", "--method", "full", "--no-sample"])
    said = capsys.readouterr().out
    assert "toy: every weight, 80,832 numbers; a checkpoint is 0.97 MB" in said
    assert "learning rate 1.0e-02 (alpha x rate 1.0e-02); to start from: 3.0e-04 (alpha x rate 3.0e-04)" in said
    assert "Warning: the learning rate 1.0e-02 is above the known window, 1.3e-04 to 3.7e-04" in said


@pytest.mark.parametrize("command", ["check", "eval"])
def test_usage_lines_name_the_command_and_not_the_binary(command, capsys) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"usage: rlora {command} " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([command, "--zzz"])
    assert f"rlora {command} --help" in capsys.readouterr().err


def test_the_version_is_said(capsys) -> None:
    main(["--version"])
    assert capsys.readouterr().out.startswith("rlora 0.")


def test_a_word_that_is_no_command_names_the_one_that_was_meant(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["exprt"])
    assert "Did you mean rlora export?" in capsys.readouterr().err


def test_a_models_name_alone_reads_its_configuration_and_samples_nothing(capsys, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text((model_dir(TOY_MODEL) / "config.json").read_text())  # no weights
    monkeypatch.setattr("rlora.commands.check.open_sampler", None)
    main(["check", "--model", str(folder)])
    said = capsys.readouterr().out
    assert "rank 1 on all layers: 2,048 numbers" in said
    assert "learning rate to start from, LoRA, 50 updates: 9.0e-04" in said
    main(["check", "--model=toy"])
    assert "add --benchmark NAME" in capsys.readouterr().out
