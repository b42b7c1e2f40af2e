"""`rlora check` on the toy model: what is printed is what the model got, said, and was judged by."""

import pytest
from conftest import TOY_MODEL

from rlora.cli import main
from rlora.models import load_tokenizer, model_dir
from rlora.tasks import task
from rlora.tasks.prompts import PromptConfig, PromptRenderer

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
