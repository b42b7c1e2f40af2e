import json
from types import SimpleNamespace

import pytest
import torch

from rlora.errors import ConfigError, DataError
from rlora.tasks import TASKS, task
from rlora.tasks.curriculum import LEAST, SolveRates
from rlora.tasks.prompts import PromptConfig, PromptRenderer
from rlora.tasks.sets.gsm8k import solved
from rlora.tasks.source import VARIABLE, data_folder, read_jsonl
from rlora.tasks.stream import ProblemStream
from rlora.types import Completion, Group, Problem, Prompt, Rollout, StopReason, Verdict, VerdictKind

pytestmark = pytest.mark.unit


def test_arithmetic_splits_share_no_unordered_pair_and_cover_all() -> None:
    splits = [task("arithmetic").load(split, None) for split in ("train", "test")]
    pairs = [{frozenset(problem.id.rsplit("/", 1)[1].split("+")) for problem in split} for split in splits]
    assert not pairs[0] & pairs[1]
    assert len(splits[0]) + len(splits[1]) == 98 * 99 // 2
    assert len(splits[1]) == 500
    for problem in splits[1]:
        a, b = problem.question.removeprefix("What is ").removesuffix("?").split(" + ")
        assert int(a) + int(b) == int(problem.answer)
        assert 2 <= min(int(a), int(b)) <= max(int(a), int(b)) <= 99


@pytest.mark.parametrize("name", ["arithmetic", "digits"])
def test_problem_ids_are_unique(name) -> None:
    ids = [problem.id for split in ("train", "test") for problem in task(name).load(split, None)]
    assert len(ids) == len(set(ids)) > 10


def test_a_unicode_line_separator_inside_a_row_does_not_cut_it(tmp_path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": "one\u2028two"}\n{"a": "three"}\n', encoding="utf-8")
    assert [row["a"] for row in read_jsonl(path)] == ["one\u2028two", "three"]


def test_unknown_data_set_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=f"'gsm9k' is unknown; it must be one of {', '.join(TASKS)}"):
        task("gsm9k")


def test_a_worked_solution_of_gsm8k_loses_the_calculators_marks_and_has_its_answer_in_a_box() -> None:
    answer = "He has 48/2 = <<48/2=24>>24 clips.\nThat is $<<24*100=2400>>2,400 cents.\n#### 2,400"
    expected = "He has 48/2 = 24 clips.\nThat is $2,400 cents.\nThe answer is \\boxed{2400}."
    assert solved({"question": "How much?", "answer": answer}) == {"question": "How much?", "answer": expected}
    other = {"messages": [{"role": "user", "content": "Hi"}]}
    assert solved(other) == other


@pytest.mark.data
def test_gsm8k_from_the_local_folder(data_dir) -> None:
    train, test = (task("gsm8k").load(split, str(data_dir)) for split in ("train", "test"))
    assert (len(train), len(test)) == (7473, 1319)
    assert test[0].answer == "18"
    assert all(float(problem.answer) is not None for problem in train + test)
    assert sum("," in problem.answer for problem in train) == 0


def test_missing_data_says_which_option_to_set(tmp_path, monkeypatch) -> None:
    with pytest.raises(DataError, match=r"gsm8k/train.jsonl does not exist; set --data-dir or RLORA_DATA"):
        task("gsm8k").load("train", str(tmp_path))
    with pytest.raises(DataError, match="--data-dir is '/nowhere', which is not a folder"):
        data_folder("/nowhere")
    monkeypatch.setenv(VARIABLE, "/nowhere-else")
    with pytest.raises(DataError, match="RLORA_DATA is '/nowhere-else', which is not a folder"):
        data_folder()


def test_without_folder_and_hub_the_error_names_both(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(DataError, match=r"openai/gsm8k could not be had from the hub .* Set --data-dir or RLORA_DATA"):
        task("gsm8k").load("train", None)


def test_damaged_rows_are_named(tmp_path) -> None:
    path = tmp_path / "gsm8k" / "train.jsonl"
    path.parent.mkdir()
    path.write_text('{"question": "q", "answer": "no marker"}\n')
    with pytest.raises(DataError, match="row 0 of gsm8k train has no '#### '"):
        task("gsm8k").load("train", str(tmp_path))
    path.write_text('{"question": "q", "answer": "#### 1"}\n{broken\n')
    with pytest.raises(DataError, match=r"train.jsonl, line 2, is not JSON"):
        read_jsonl(path)


def problems(count: int) -> list[Problem]:
    return [Problem(id=str(index), question="", answer="", source="t") for index in range(count)]


def test_stream_visits_everything_once_an_epoch_and_resumes_from_its_position() -> None:
    stream = ProblemStream(problems(7), seed=3)
    taken = [problem.id for problem in stream.take(5) + stream.take(5) + stream.take(4)]
    assert sorted(taken[:7]) == sorted(taken[7:]) == [str(index) for index in range(7)]
    assert taken[:7] != taken[7:]
    again = ProblemStream(problems(7), seed=3, position=5)
    assert [problem.id for problem in again.take(5)] == taken[5:10]
    assert [problem.id for problem in ProblemStream(problems(7), seed=4).take(7)] != taken[:7]
    assert stream.position == 14


def test_stream_takes_more_than_an_epoch_at_once_and_refuses_an_empty_set() -> None:
    assert len(ProblemStream(problems(3), seed=0).take(10)) == 10
    with pytest.raises(DataError, match="the training set is empty"):
        ProblemStream([], seed=0)


def test_plain_template_and_instruction(toy_tokenizer) -> None:
    problem = Problem(id="x", question="What is 3 + 4?", answer="7", source="t")
    renderer = PromptRenderer(toy_tokenizer, PromptConfig(), instruction="Answer.")
    prompt = renderer.render(problem)
    assert prompt.text == "Question: What is 3 + 4? Answer.\nAnswer:"
    assert len(prompt.token_ids) == len(prompt.text)
    own = PromptRenderer(toy_tokenizer, PromptConfig(instruction=""), instruction="Answer.")
    assert own.render(problem).text == "Question: What is 3 + 4?\nAnswer:"


def test_chat_template_must_exist(toy_tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"the tokenizer has no chat template; use --prompt.template plain"):
        PromptRenderer(toy_tokenizer, PromptConfig(template="chat"), instruction="")


def test_special_tokens_are_not_doubled() -> None:
    """A chat template writes its own beginning; a plain text gets the tokenizer's, once, and no end."""

    def tokenize(text: str, add_special_tokens: bool = True) -> dict:
        ids = [10 + ord(character) % 7 for character in text]
        return {"input_ids": [1, *ids, 2] if add_special_tokens else ids}

    def template(messages: list, **_: object) -> str:
        return "<s>" + json.dumps(messages)

    class Tokenizer(SimpleNamespace):
        def __call__(self, *args: object, **kwargs: object) -> dict:
            return tokenize(*args, **kwargs)

    tokenizer = Tokenizer(chat_template="x", apply_chat_template=template, eos_token_id=2)
    problem = Problem(id="x", question="Q", answer="7", source="t")
    chat = PromptRenderer(tokenizer, PromptConfig(system="S"), instruction="").render(problem)
    assert 1 not in chat.token_ids
    assert '"system", "content": "S"' in chat.text
    plain = PromptRenderer(tokenizer, PromptConfig(template="plain"), instruction="").render(problem)
    assert plain.token_ids[0] == 1
    assert 1 not in plain.token_ids[1:]
    assert plain.token_ids[-1] != 2


def group_of(problem: Problem, rewards: list[float]) -> Group:
    completion = Completion(token_ids=(1,), logprobs=(0.0,), text="", stop=StopReason.END, policy=0, version=0)
    kinds = [VerdictKind.CORRECT if reward else VerdictKind.WRONG for reward in rewards]
    return Group(
        prompt=Prompt(problem=problem, text="", token_ids=(1,)),
        rollouts=tuple(
            Rollout(completion=completion, verdict=Verdict(kind=kind, reward=reward))
            for kind, reward in zip(kinds, rewards, strict=True)
        ),
    )


def test_chance_of_a_problem_is_that_of_a_mixed_group_under_what_was_seen() -> None:
    rates = SolveRates(2, 4)
    assert rates.chance(0) == 1
    rates.observe(0, num_right=0, num_wrong=4)
    p = torch.linspace(0, 1, 200_001, dtype=torch.float64)  # Beta(1, 5) has density 5 (1 - p)^4
    mixed = (1 - p**4 - (1 - p) ** 4) * 5 * (1 - p) ** 4
    assert rates.chance(0) == pytest.approx(float(torch.trapezoid(mixed, p)) / (1 - 2 / 5), rel=1e-6)
    rates.observe(1, num_right=4, num_wrong=0)
    assert rates.chance(1) == pytest.approx(rates.chance(0))


def test_evidence_adds_up_fades_and_never_rules_a_problem_out() -> None:
    rates = SolveRates(1, 8)
    chances = []
    for _ in range(50):
        rates.observe(0, num_right=0, num_wrong=8)
        chances.append(rates.chance(0))
    assert chances[0] > chances[1] > chances[2]
    assert all(chance >= LEAST for chance in chances)
    assert float(rates.counts_P2.sum()) == pytest.approx(16)  # 8 / (1 - 1/2): old visits fade
    rates.observe(0, num_right=4, num_wrong=4)
    assert rates.chance(0) > 0.9 * 7 / 9  # one mixed group outweighs fifty visits without success


def test_curriculum_draws_hopeless_problems_less_often_and_resumes_from_its_counts() -> None:
    chosen = problems(40)
    stream = ProblemStream(chosen, seed=0, solve_rates=SolveRates(40, 8))
    for _ in range(3):  # ids below 20 are never solved, the others half the time
        for problem in stream.take(40):
            stream.observe([group_of(problem, [0.0] * 8 if int(problem.id) < 20 else [0.0, 1.0] * 4)])
    position, counts = stream.position, stream.solve_rates.counts_P2.clone()
    taken = [problem.id for problem in stream.take(1000)]
    hopeless = sum(int(name) < 20 for name in taken)
    assert 250 < hopeless < 370  # drawn with a chance of 0.45 against 1, so 309 of 1000 are expected
    again = ProblemStream(chosen, seed=0, position=position, solve_rates=SolveRates(40, 8, counts))
    assert [problem.id for problem in again.take(1000)] == taken
    assert again.position == stream.position
