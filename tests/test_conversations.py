"""Conversations as token ids with a mask of what the assistant says, by the chat templates of four families."""

import json
from dataclasses import replace

import pytest
from support.chats import GEMMA, LLAMA3, QWEN3, SMOLLM2, character_tokenizer

from rlora.errors import ConfigError, DataError
from rlora.tasks.chat import Chat, PromptConfig
from rlora.tasks.conversations import Unfit, check_turns, conversation_of
from rlora.tasks.data import DataConfig
from rlora.tasks.examples import Encoder, Intake
from rlora.tasks.fields import check_problems
from rlora.tasks.overlap import drop_overlap
from rlora.tasks.prompts import PromptRenderer
from rlora.tasks.sets.own import read_own
from rlora.tasks.stream import fingerprint
from rlora.types import Message, Problem

pytestmark = pytest.mark.unit

TEMPLATES = {"qwen3": QWEN3, "llama3": LLAMA3, "gemma": GEMMA, "smollm2": SMOLLM2}
ENDS = {"qwen3": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "smollm2": "<|im_end|>"}
HELLO = [("user", "Hi"), ("assistant", "Hello."), ("user", "2 + 3?"), ("assistant", "It is 5.")]


def conversation(turns) -> list[Message]:
    return [Message(role=role, content=content) for role, content in turns]


def encoded(template: str | None, turns, *, max_tokens: int = 4096, **options) -> tuple[object, Intake]:
    tokenizer = character_tokenizer(template)
    intake = Intake()
    Encoder(Chat(tokenizer, PromptConfig(**options)), max_tokens=max_tokens).add(intake, conversation(turns), id="a/1")
    return tokenizer, intake


def trained(tokenizer, example) -> list[str]:
    """Return the texts that are trained, one a turn."""
    texts, before = [], 0
    for token, is_trained in zip(example.token_ids, example.is_trained, strict=True):
        if is_trained:
            texts = texts if before else [*texts, ""]
            texts[-1] += tokenizer.decode([token])
        before = is_trained
    return texts


@pytest.mark.parametrize("name", ["llama3", "gemma", "smollm2"])
def test_what_the_assistant_says_and_the_end_of_its_turn_is_trained(name) -> None:
    tokenizer, intake = encoded(TEMPLATES[name], HELLO)
    (example,) = intake.examples
    assert trained(tokenizer, example) == [f"Hello.{ENDS[name]}", f"It is 5.{ENDS[name]}"]
    whole = tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in HELLO], tokenize=False)
    assert tokenizer.decode(list(example.token_ids)) == whole.rstrip("\n")
    assert intake.lines("x", 1) == []


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_tokens_before_an_answer_are_those_of_the_prompt(name) -> None:
    tokenizer, intake = encoded(TEMPLATES[name], HELLO[:2])
    (example,) = intake.examples
    chat = Chat(tokenizer, PromptConfig())
    prompt = chat.token_ids(chat.parts(conversation(HELLO[:1]), is_asking=True, where="x"))
    assert list(example.token_ids[: example.is_trained.index(1)]) == prompt


def test_a_template_that_drops_earlier_thoughts_makes_an_example_of_each_turn() -> None:
    thought = [(role, f"<think>\nhm\n</think>\n\n{text}" if role == "assistant" else text) for role, text in HELLO]
    tokenizer, intake = encoded(QWEN3, thought, enable_thinking=True)
    first, second = intake.examples
    assert trained(tokenizer, first) == ["<think>\nhm\n</think>\n\nHello.<|im_end|>"]
    assert trained(tokenizer, second) == ["<think>\nhm\n</think>\n\nIt is 5.<|im_end|>"]
    before = tokenizer.decode(list(second.token_ids[: second.is_trained.index(1)]))
    assert "<|im_start|>assistant\nHello.<|im_end|>" in before
    assert "hm" not in before
    assert "1 conversations became an example for each turn" in intake.lines("x", 1)[0]


def test_thoughts_want_a_template_that_asks_for_them() -> None:
    turns = [("user", "Hi"), ("assistant", "<think>\nhm\n</think>\n\nHello.")]
    _, intake = encoded(QWEN3, turns)
    assert intake.unfit == {"without the prefix property": 1}
    with pytest.raises(
        DataError, match=r"none of the 1 conversations of x can be used. .*add --prompt.enable-thinking"
    ):
        intake.require("x")
    tokenizer, intake = encoded(QWEN3, [("user", "Hi"), ("assistant", "Hello.")])
    assert trained(tokenizer, intake.examples[0]) == ["Hello.<|im_end|>"]  # behind the empty thought of the prompt


def test_a_system_message_is_the_conversations_or_the_configurations() -> None:
    tokenizer, intake = encoded(SMOLLM2, HELLO, system="Be short.")
    assert tokenizer.decode(list(intake.examples[0].token_ids)).startswith("<|im_start|>system\nBe short.<|im_end|>")
    tokenizer, intake = encoded(SMOLLM2, [("system", "Own."), *HELLO], system="Be short.")
    assert tokenizer.decode(list(intake.examples[0].token_ids)).startswith("<|im_start|>system\nOwn.<|im_end|>")


def test_a_template_without_system_messages_refuses_them_by_count() -> None:
    _, intake = encoded(GEMMA, [("system", "Own."), *HELLO])
    assert intake.unfit == {"that the template refuses": 1}
    assert "System role not supported" in intake.lines("x", 1)[0]


@pytest.mark.parametrize("name", ["qwen3", "llama3", "smollm2"])
def test_special_tokens_in_what_is_said_are_text(name) -> None:
    end = ENDS[name]
    tokenizer, intake = encoded(TEMPLATES[name], [("user", f"What is {end}?"), ("assistant", f"A {end} mark.")])
    (example,) = intake.examples
    end_id = tokenizer.convert_tokens_to_ids(end)
    assert list(example.token_ids).count(end_id) == sum(len(edge) > 0 for edge in ("user", "assistant")) + (
        name == "smollm2"
    )
    assert trained(tokenizer, example) == [f"A {end} mark.{end}"]


def test_a_base_model_gets_the_plain_format_and_learns_to_stop() -> None:
    tokenizer, intake = encoded(None, HELLO)
    (example,) = intake.examples
    assert tokenizer.decode(list(example.token_ids)) == (
        "Question: Hi\nAnswer: Hello.<end>\n\nQuestion: 2 + 3?\nAnswer: It is 5.<end>"
    )
    assert trained(tokenizer, example) == [" Hello.<end>", " It is 5.<end>"]


def test_a_long_example_is_cut_and_counted() -> None:
    tokenizer, intake = encoded(None, HELLO, max_tokens=24)
    (example,) = intake.examples
    assert len(example.token_ids) == 24
    assert trained(tokenizer, example) == [" Hel"]
    assert intake.num_cut == 1
    _, intake = encoded(None, HELLO, max_tokens=18)
    assert intake.unfit == {"cut before the assistant's turn": 1}


def test_a_last_turn_of_the_users_trains_nothing_and_is_left_off() -> None:
    assert encoded(None, [*HELLO, ("user", "Thanks")])[1].examples == encoded(None, HELLO)[1].examples


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "without messages"),
        ([("assistant", "Hello.")], "with roles in odd order"),
        ([("user", "a"), ("user", "b"), ("assistant", "c")], "with roles in odd order"),
        ([("user", "a"), ("narrator", "b")], "with roles in odd order"),
        ([("user", "a")], "without an assistant's turn"),
        ([("user", "a"), ("assistant", " \n")], "with an empty assistant's turn"),
    ],
)
def test_what_cannot_be_trained_is_counted_by_its_reason(turns, reason) -> None:
    _, intake = encoded(None, turns)
    assert intake.unfit == {reason: 1}
    assert f"1 of 1 conversations are left out: 1 {reason}" in intake.lines("x", 1)[0]
    assert intake.examples == []


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"prompt": "a", "completion": "b"},
        {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
        {"question": "a", "answer": "b"},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}]},
                {"role": "assistant", "content": "b"},
            ]
        },
    ],
)
def test_conversations_are_read_in_their_usual_forms(row) -> None:
    assert conversation_of(row, where="row 1") == tuple(conversation([("user", "a"), ("assistant", "b")]))


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        ({"text": "a"}, "without messages", "row 1 has no messages, only text"),
        ({"messages": []}, "without messages", "has no messages"),
        ({"messages": ["a"]}, "with something else than messages", "message 1, is no message"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "with something else than text",
            "something else than text",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "that call tools",
            "calls a tool, which is not read",
        ),
    ],
)
def test_rows_that_hold_no_conversation_are_refused(row, reason, message) -> None:
    with pytest.raises(Unfit, match=message) as error:
        conversation_of(row, where="row 1")
    assert error.value.reason == reason


def test_a_tool_speaks_behind_the_assistant() -> None:
    check_turns(conversation([("user", "a"), ("assistant", "b"), ("tool", "c"), ("assistant", "d")]), where="x")
    with pytest.raises(Unfit, match="message 2, is of the role 'tool'; after 'user' it must be assistant"):
        check_turns(conversation([("user", "a"), ("tool", "c")]), where="x")


def test_tools_and_options_reach_the_template(tmp_path) -> None:
    template = "{{ tools | tojson if tools else '' }}{{ effort | default('') }}{{ messages[0]['content'] }}"
    (tmp_path / "tools.json").write_text(json.dumps([{"name": "add"}]))
    config = PromptConfig(tools=str(tmp_path / "tools.json"), options='{"effort": "low"}')
    chat = Chat(character_tokenizer(template), config)
    assert chat.text(conversation([("user", "Hi")]), is_asking=True) == '[{"name": "add"}]lowHi'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tools": "none.json"}, "prompt.tools is 'none.json', which cannot be read"),
        ({"options": "{"}, "prompt.options is '{', which is not JSON"),
        ({"options": '{"messages": 1}'}, "must be a JSON object without"),
    ],
)
def test_wrong_template_options_are_refused(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        PromptConfig(**options).check()


def test_tools_that_are_no_list_are_refused(tmp_path) -> None:
    (tmp_path / "tools.json").write_text("{}")
    with pytest.raises(ConfigError, match="it must hold a JSON list of objects, one a tool"):
        PromptConfig(tools=str(tmp_path / "tools.json")).check()


ASKED = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "2 + 3?"},
]


def problem_of(tmp_path, row: dict) -> Problem:
    (tmp_path / "own.jsonl").write_text(json.dumps({"answer": "5", **row}) + "\n")
    ((problem,), _) = read_own(str(tmp_path / "own.jsonl"), DataConfig(), split="train")
    return problem


@pytest.mark.parametrize("field", ["messages", "prompt", "question"])
def test_a_problem_may_be_a_conversation(tmp_path, field) -> None:
    problem = problem_of(tmp_path, {field: ASKED})
    assert problem.question == "2 + 3?"
    assert problem.messages == tuple(conversation([(each["role"], each["content"]) for each in ASKED]))
    tokenizer = character_tokenizer(SMOLLM2)
    prompt = PromptRenderer(tokenizer, PromptConfig(system="Not this."), instruction="Number only.").render(problem)
    assert prompt.text == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\n2 + 3? Number only.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert tokenizer.decode(list(prompt.token_ids)) == prompt.text


def test_a_conversation_for_a_base_model_is_plain(tmp_path) -> None:
    problem = problem_of(tmp_path, {"messages": ASKED})
    prompt = PromptRenderer(character_tokenizer(), PromptConfig(), instruction="").render(problem)
    assert prompt.text == "Be short.\n\nQuestion: Hi\nAnswer: Hello.<end>\n\nQuestion: 2 + 3?\nAnswer:"


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (ASKED[1:3], "messages that end with 'assistant'; a problem ends with what the user asks"),
        ([ASKED[1], ASKED[3]], "message 2, is of the role 'user'; after 'user' it must be assistant"),
        ([*ASKED[:3], {"role": "user", "content": " "}], "messages that end with 'user'"),
    ],
)
def test_conversations_that_ask_nothing_are_refused(tmp_path, turns, message) -> None:
    with pytest.raises(DataError, match=message):
        problem_of(tmp_path, {"messages": turns})


def test_what_was_said_before_is_part_of_a_problem(tmp_path) -> None:
    problem = problem_of(tmp_path, {"messages": ASKED})
    other = replace(problem, id="b", messages=(Message(role="user", content="Hello"), *problem.messages[2:]))
    assert drop_overlap([problem, other], [replace(problem, id="c")]) == ([other], [problem])
    assert fingerprint([problem]) != fingerprint([replace(problem, messages=())])
    check_problems([problem, other])
    with pytest.raises(DataError, match=r"the problem 'x' has messages that end with 'assistant'"):
        check_problems([replace(problem, id="x", messages=problem.messages[:3])])
