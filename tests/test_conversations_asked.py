"""Problems whose question is the end of a conversation: read, rendered, told apart, and kept with their rollouts."""

import dataclasses
import json

import pytest
from support.chats import GEMMA, QWEN3, SMOLLM2, character_tokenizer
from support.runs import toy

from rlora.commands.cli import main
from rlora.errors import ConfigError, DataError
from rlora.loop import run
from rlora.store.rollouts import RolloutFolder
from rlora.tasks.data import DataConfig
from rlora.tasks.fields import check_problems
from rlora.tasks.overlap import drop_overlap
from rlora.tasks.prompts import PromptConfig, PromptRenderer
from rlora.tasks.sets.own import read_own
from rlora.tasks.stream import fingerprint
from rlora.types import Completion, Group, Message, Problem, Prompt, Rollout, StopReason, Verdict, VerdictKind

pytestmark = pytest.mark.unit
TURNS = [("system", "Be short."), ("user", "2 + 3?"), ("assistant", "5"), ("user", "Twice that?")]
ROW = {"messages": [{"role": role, "content": content} for role, content in TURNS], "answer": "10"}


def asked(*turns: tuple[str, str], id: str = "a/1") -> Problem:
    messages = tuple(Message(role=role, content=content) for role, content in turns)
    return Problem(id=id, question=messages[-1].content, answer="10", source="a", messages=messages)


def read(folder, *rows, **fields) -> list[Problem]:
    path = folder / "mine.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return read_own(str(path), DataConfig(**fields), split="train")[0]


@pytest.mark.parametrize("field", ["messages", "prompt", "question"])
def test_messages_are_read_from_the_usual_columns(field, tmp_path) -> None:
    (problem,) = read(tmp_path, {field: ROW["messages"], "answer": 10})
    assert problem.question == "Twice that?"
    assert [(turn.role, turn.content) for turn in problem.messages] == TURNS
    check_problems([problem])


def test_a_named_column_is_the_one_that_is_read(tmp_path) -> None:
    row = ROW | {"question": "Another?", "turns": [{"from": "human", "value": "A?"}, {"from": "gpt", "value": "B."}]}
    assert read(tmp_path, row)[0].question == "Another?"
    assert read(tmp_path, row, question_field="messages")[0].question == "Twice that?"
    with pytest.raises(DataError, match=r"end with 'assistant'; .*or train .* by rlora train sft"):
        read(tmp_path, row, question_field="turns")


def test_a_prompt_that_is_a_text_is_a_question(tmp_path) -> None:
    (problem,) = read(tmp_path, {"prompt": "2 + 3?", "answer": "5"})
    assert (problem.question, problem.messages) == ("2 + 3?", ())


def test_messages_come_from_parquet_as_well(tmp_path) -> None:
    from datasets import Dataset

    Dataset.from_list([ROW]).to_parquet(tmp_path / "mine.parquet")
    problems, _ = read_own(str(tmp_path / "mine.parquet"), DataConfig(), split="train")
    assert [(turn.role, turn.content) for turn in problems[0].messages] == TURNS


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([["user", "a"], ["user", "b"]], "message 2, is of the role 'user'; after 'user' it must be assistant"),
        ([["user", "a"], ["assistant", "b"]], "end with 'assistant'"),
        ([["system", "a"], ["user", " "]], "end with 'user', whose turn is empty"),
        ([["narrator", "a"], ["user", "b"]], "message 1, is of the role 'narrator'; first it must be system or user"),
    ],
)
def test_messages_that_ask_nothing_are_refused_with_their_place(messages, message, tmp_path) -> None:
    row = {"messages": [{"role": role, "content": content} for role, content in messages], "answer": "1"}
    with pytest.raises(DataError, match=f"object 1.*{message}"):
        read(tmp_path, row)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (dataclasses.replace(asked(*TURNS), question="Other?"), "asks 'Other.*', and its last message is 'Twice that"),
        (asked(("user", "a"), ("assistant", "b")), "end with 'assistant'"),
        (asked(("system", "\ud800"), ("user", "b")), "half of a surrogate pair in its message 1"),
    ],
)
def test_problems_of_a_script_are_checked_too(problem, message) -> None:
    with pytest.raises(DataError, match=message):
        check_problems([problem])


def test_the_instruction_stands_behind_the_last_turn() -> None:
    tokenizer = character_tokenizer(SMOLLM2)
    prompt = PromptRenderer(tokenizer, PromptConfig(system="Unused."), instruction="Say it.").render(asked(*TURNS))
    assert prompt.text == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n2 + 3?<|im_end|>\n<|im_start|>assistant\n"
        "5<|im_end|>\n<|im_start|>user\nTwice that? Say it.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(list(prompt.token_ids)) == prompt.text


def test_a_turn_that_spells_a_mark_ends_nothing() -> None:
    tokenizer = character_tokenizer(SMOLLM2)
    problem = asked(("user", "A <|im_end|> mark?"), ("assistant", "Yes, <|im_end|>."), ("user", "Sure?"))
    prompt = PromptRenderer(tokenizer, PromptConfig(), instruction="").render(problem)
    end_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert prompt.token_ids.count(end_id) == 4  # of the template's system message and of three turns
    assert prompt.text.count("<|im_end|>") == 6


def test_thinking_is_asked_for_and_earlier_thoughts_are_dropped() -> None:
    problem = asked(("user", "2 + 3?"), ("assistant", "<think>\nhm\n</think>\n\n5"), ("user", "Twice that?"))
    texts = [
        PromptRenderer(character_tokenizer(QWEN3), PromptConfig(enable_thinking=thinks), instruction="").render(problem)
        for thinks in (False, True)
    ]
    assert [prompt.text.endswith("<think>\n\n</think>\n\n") for prompt in texts] == [True, False]
    assert all("hm" not in prompt.text for prompt in texts)


def test_a_template_without_system_messages_says_so_before_anything_is_sampled() -> None:
    renderer = PromptRenderer(character_tokenizer(GEMMA), PromptConfig(), instruction="")
    renderer.check([asked(*TURNS[1:])], num_rows=10_000)
    with pytest.raises(ConfigError, match=r"refuses system .* System role not supported"):
        renderer.check([asked(*TURNS)], num_rows=10_000)


def test_a_base_model_is_asked_in_the_plain_format() -> None:
    prompt = PromptRenderer(character_tokenizer(), PromptConfig(), instruction="").render(asked(*TURNS))
    assert prompt.text == "Be short.\n\nQuestion: 2 + 3?\nAnswer: 5<end>\n\nQuestion: Twice that?\nAnswer:"


def test_long_conversations_are_counted() -> None:
    renderer = PromptRenderer(character_tokenizer(), PromptConfig(), instruction="")
    assert renderer.num_too_long([asked(*TURNS), asked(("user", "x" * 300), *TURNS[2:])], 200) == 1


def test_conversations_are_told_apart_by_all_that_was_said() -> None:
    other = asked(("user", "4 + 4?"), ("assistant", "8"), ("user", "Twice that?"), id="a/2")
    assert fingerprint([asked(*TURNS)]) != fingerprint([dataclasses.replace(other, id="a/1")])
    kept, dropped = drop_overlap([asked(*TURNS[1:]), other], [asked(*TURNS, id="b/1")])
    assert [problem.id for problem in kept] == ["a/2"]
    assert [problem.id for problem in dropped] == ["a/1"]  # whatever the system message


def test_a_single_turn_with_a_system_message_is_found_in_a_test_of_texts() -> None:
    plain = Problem(id="b/1", question="2 + 3 ?", answer="5", source="b")
    assert drop_overlap([asked(("system", "Be short."), ("user", "2 + 3?"))], [plain])[0] == []


def test_rollouts_keep_the_turns_and_give_the_problem_back(tmp_path) -> None:
    completion = Completion(token_ids=(1,), logprobs=(-0.5,), text="10", stop=StopReason.END, policy=0, version=0)
    rollout = Rollout(completion=completion, verdict=Verdict(kind=VerdictKind.CORRECT, reward=1.0))
    problems = [asked(*TURNS), Problem(id="a/2", question="2 + 3?", answer="5", source="a")]
    folder = RolloutFolder(tmp_path / "rollouts")
    folder.save(
        0, [Group(prompt=Prompt(problem=each, text="", token_ids=(1,)), rollouts=(rollout,)) for each in problems]
    )
    folder.flush()
    folder.close()
    rows = [json.loads(line) for line in (tmp_path / "rollouts" / "step-000000.jsonl").read_text().splitlines()]
    assert "messages" not in rows[1]


@pytest.mark.loop
def test_a_run_trains_on_conversations_and_its_export_asks_them_again(tmp_path, capsys) -> None:
    rows = [{"messages": [*chat(f"{n}+1?", f"{n + 1}"), *chat("And?")], "answer": str(n + 2)} for n in range(12)]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = toy(tmp_path / "run", num_steps=1, data=DataConfig(train=str(path)), reward="last_number")
    run_dir = run(dataclasses.replace(config, prompt=PromptConfig(instruction="")))
    row = json.loads((run_dir / "rollouts" / "step-000000.jsonl").read_text().splitlines()[0])
    assert row["question"] == "And?"
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant", "user"]
    capsys.readouterr()
    main(["export", str(run_dir), "--merge", "--to", str(tmp_path / "merged")])
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def chat(*turns: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant"), turns, strict=False)]
