"""What is judged is what was said, and a prompt is what the model's template makes of a question."""

import dataclasses
from pathlib import Path

import pytest
from support import evaluations
from support.outside import config_of, rollouts, says, sums, toy_folder
from transformers import AutoTokenizer

from rlora.errors import ConfigError, RunDirError
from rlora.evaluation.run import evaluate_benchmarks
from rlora.loop import run
from rlora.model.sources import ModelConfig, end_token_ids, load_tokenizer
from rlora.model.tokens import said_text
from rlora.store.run_dir import read_json
from rlora.tasks.prompts import PromptConfig, PromptRenderer
from rlora.types import Problem, Prompt

pytestmark = pytest.mark.unit
TURNS = (
    "{% for m in messages %}{{ 'Q ' + m['content'] + '=\\n' }}{% endfor %}{% if add_generation_prompt %}A {% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ messages[0]['content'] }}"
)


def renderer_of(folder: Path, **options) -> PromptRenderer:
    return PromptRenderer(
        load_tokenizer(folder, ModelConfig(name=str(folder))), PromptConfig(**options), instruction=""
    )


def test_special_tokens_are_in_the_text_but_for_the_end(tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(toy_folder(tmp_path, special=("<think>", "</think>")))
    for text in ("<think>it may be 7", "<think>12</think>7", "7"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert said_text(tokenizer, [*ids, 0], (0,)) == text
        assert said_text(tokenizer, ids, (0,)) == text  # cut off
    assert said_text(tokenizer, [0], (0,)) == said_text(tokenizer, [], (0,)) == ""


@pytest.mark.loop
def test_a_thought_that_never_ends_is_not_paid_where_its_mark_is_a_special_token(tmp_path) -> None:
    model = toy_folder(tmp_path / "model")
    (model / "tokenizer.json").write_text((model / "tokenizer.json").read_text().replace('"W"', '"<think>"'))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    tokenizer.save_pretrained(model)
    think = tokenizer.convert_tokens_to_ids("<think>")
    says(model, think, nats=4.0)
    run_dir = run(config_of(tmp_path / "run", model=model, train=sums(tmp_path / "t.jsonl"), samples_per_problem=64))
    thoughts = [row for row in rollouts(run_dir) if think in row["token_ids"]]
    assert len(thoughts) > 100
    assert {row["reward"] for row in thoughts} == {0.0}
    assert all("<think>" in row["text"] for row in thoughts)


@pytest.mark.loop
def test_a_completion_ends_where_the_template_ends_a_turn(tmp_path) -> None:
    model = toy_folder(tmp_path / "model", template=TURNS, special=("=",))
    turn_end = load_tokenizer(model, ModelConfig()).convert_tokens_to_ids("=")
    says(model, turn_end, nats=4.5, instead_of_the_end=True)
    run_dir = run(config_of(tmp_path / "run", model=model, train=sums(tmp_path / "t.jsonl")))
    rows = rollouts(run_dir)
    assert sum(row["token_ids"][-1] == turn_end for row in rows) > len(rows) / 4
    assert not any(turn_end in row["token_ids"][:-1] for row in rows)
    assert all(row["stop"] == "end" and "=" not in row["text"] for row in rows if row["token_ids"][-1] == turn_end)


@pytest.mark.parametrize(("template", "expected"), [(TURNS, 1), (NO_SYSTEM, 0), (None, 0)])
def test_the_turn_end_is_the_first_special_token_behind_an_answer(tmp_path, template, expected) -> None:
    folder = toy_folder(tmp_path, template=template, special=("?", "="))
    found = renderer_of(folder).turn_end_ids()
    assert found == (15,) * expected
    assert end_token_ids(folder, load_tokenizer(folder, ModelConfig()), found) == (0, 15)[: 1 + expected]
    assert renderer_of(folder, template="plain").turn_end_ids() == ()


def test_a_template_that_refuses_a_system_message_is_a_config_error_before_anything_is_written(tmp_path) -> None:
    model = toy_folder(tmp_path / "model", template=NO_SYSTEM)
    options = {"model": model, "train": sums(tmp_path / "t.jsonl")}
    config = config_of(tmp_path / "run", prompt=PromptConfig(system="You add."), **options)
    with pytest.raises(ConfigError, match=r"refuses system \+ user: System role not supported. Leave --prompt.system"):
        run(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["", "<html>404</html>", "[]", '{"eos_token_id": "x"}'])
def test_a_broken_generation_config_is_named(tmp_path, text) -> None:
    folder = toy_folder(tmp_path)
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"generation_config.json"):
        end_token_ids(folder, load_tokenizer(folder, ModelConfig()))


@pytest.mark.loop
def test_the_day_that_a_template_writes_is_the_runs_and_stays(tmp_path, monkeypatch) -> None:
    template = "{{ strftime_now('%d %m %Y') + '\\n' + messages[0]['content'] }}"
    model = toy_folder(tmp_path / "model", template=template)
    config = config_of(tmp_path / "run", model=model, train=sums(tmp_path / "t.jsonl"), num_steps=2)
    days = iter(["2026-11-30", "2026-12-01", "2026-12-02", "2026-12-03", "2026-12-04"])
    for module in ("rlora.resume", "rlora.evaluation.subject"):
        monkeypatch.setattr(f"{module}.today", lambda: next(days))
    problem = Problem(id="x", question="What is 2 + 3?", answer="5", source="t")
    assert renderer_of(model, date="2026-11-30").render(problem).text == "30 11 2026\nWhat is 2 + 3?"

    straight = run(dataclasses.replace(config, run_dir=str(tmp_path / "straight"), num_steps=3))
    assert read_json(straight / "config.json")["prompt"]["date"] == "2026-11-30"
    dated = dataclasses.replace(config, prompt=PromptConfig(date="2026-11-30"))
    run(dated)
    run(dataclasses.replace(config, num_steps=3))  # without the option, and on whichever day
    assert rollouts(tmp_path / "run", 2) == rollouts(straight, 2)
    run(dataclasses.replace(config, branch=f"{tmp_path / 'branch'}@2", num_steps=3))
    assert rollouts(tmp_path / "branch", 2) == rollouts(straight, 2)
    with pytest.raises(RunDirError, match=r"prompt.date: '2026-11-30' -> '2027-01-01'"):
        run(dataclasses.replace(config, prompt=PromptConfig(date="2027-01-01"), num_steps=4))

    of_run = evaluate_benchmarks(evaluations.toy(tmp_path / "a", run=str(straight), limit=1))
    assert of_run["subject"]["prompt"]["date"] == "2026-11-30"
    for limit in (1, 2):  # an evaluation that is prolonged keeps its day
        config = evaluations.toy(tmp_path / "b", model=str(model), limit=limit)
        assert evaluate_benchmarks(config)["subject"]["prompt"]["date"] == "2026-12-01"


def test_a_date_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"prompt.date is 'tomorrow'; it must be a day"):
        PromptConfig(date="tomorrow").check()


@pytest.mark.parametrize("template", [None, "{% for m in messages %}<user>{{ m['content'] | trim }}<end>{% endfor %}"])
def test_a_special_token_that_a_question_spells_is_its_characters(tmp_path, template) -> None:
    folder = toy_folder(tmp_path / "model", template=template, special=("<user>", "<zz>"), vocab_size=60)
    config = ModelConfig(name=str(folder))
    tokenizer = load_tokenizer(folder, config)
    renderer = PromptRenderer(tokenizer, PromptConfig(), instruction="Say 7.")
    marks = {tokenizer.convert_tokens_to_ids(token) for token in ("<end>", "<user>", "<zz>")}

    def prompt(question: str) -> Prompt:
        return renderer.render(Problem(id="a", question=question, answer="7", source="t"))

    usual = [token for token in prompt("7").token_ids if token in marks]
    for question in ("<end>", "What is <zz> + 3?<end>", "7<user>7<end><user>", "<<end>>", "<zz><zz>", " <end>7"):
        found = prompt(question)
        assert [token for token in found.token_ids if token in marks] == usual
        assert question.strip() in found.text
        assert found.token_ids.count(tokenizer.convert_tokens_to_ids("<unknown>")) >= 2  # of < and >
    assert prompt("What is 2 + 3?").token_ids == tuple(tokenizer(prompt("What is 2 + 3?").text)["input_ids"])


def test_a_template_that_hides_a_question_with_a_special_token_is_refused(tmp_path) -> None:
    folder = toy_folder(tmp_path / "model", template="{{ messages[0]['content'][1:] }}", special=("<zz>",))
    renderer = PromptRenderer(load_tokenizer(folder, ModelConfig(name=str(folder))), PromptConfig(), instruction="")
    problem = Problem(id="a", question="What is <zz>?", answer="7", source="t")
    assert renderer.render(dataclasses.replace(problem, question="What is 7?")).text == "hat is 7?"
    with pytest.raises(ConfigError, match="the question of a spells the special token <zz>, and the model's template"):
        renderer.check([problem], num_rows=100)
