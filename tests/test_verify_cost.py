"""What judging costs in the caller's process, which has no deadline: counts of work, by the size of the completion."""

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

from rlora.types import VerdictKind
from rlora.verify import JudgeRequest, Verifier, extract
from rlora.verify.comparison.decide import Effort
from rlora.verify.comparison.equal import cheap_verdict
from rlora.verify.extraction.extract import gold_text
from rlora.verify.extraction.scan import boxes
from rlora.verify.judging import Outcome, judge_cheaply
from rlora.verify.reading import answer
from rlora.verify.reading.answer import parse_answer

pytestmark = pytest.mark.unit


def _counted(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count the calls of a function of the verifier that go through its module."""
    owner = import_module(f"rlora.verify.{module}")  # `extract` and `equal` are functions of the package as well
    function, calls = getattr(owner, name), []

    def counting(*args: Any, **options: Any) -> Any:
        calls.append(name)
        return function(*args, **options)

    monkeypatch.setattr(owner, name, counting)
    return lambda: len(calls)


def _boxes(count: int, joint: str = ", ") -> str:
    return "So it is " + joint.join(rf"\boxed{{{i}}}" for i in range(count))


def _cheaply(text: str, gold: str) -> Outcome:
    return judge_cheaply(JudgeRequest(text=text, gold=gold))


@pytest.mark.parametrize("joint", [", ", " or ", "$ and $", " \n"])
def test_a_list_of_boxes_costs_no_more_comparisons_the_longer_it_is(joint: str, monkeypatch) -> None:
    compared = _counted("extraction.extract", "cheap_verdict", monkeypatch)
    unboxed = _counted("extraction.extract", "_unboxed", monkeypatch)
    assert extract(_boxes(12, joint)).text == ", ".join(map(str, range(12)))
    assert (compared(), unboxed()) == (12 * 11 // 2, 12)
    for count in (13, 100, 1_000, 30_000):
        compared_before, unboxed_before = compared(), unboxed()
        assert extract(_boxes(count, joint)).kind is VerdictKind.WRONG
        assert compared() == compared_before
        assert unboxed() - unboxed_before <= 64
        assert len(boxes(_boxes(count, joint))[0]) <= 64


def test_no_answer_is_fished_from_a_long_list_of_boxes() -> None:
    with Verifier() as verifier:
        for count in (13, 64, 65, 200):
            for gold in ("0", "12", str(count - 1), ", ".join(map(str, range(count))), str(count)):
                verdict = verifier.judge(_boxes(count), gold)
                assert verdict.kind is VerdictKind.WRONG
                assert verdict.extracted.endswith(f", {count - 2}, {count - 1}")
        found = verifier.explain(JudgeRequest(text=_boxes(13), gold="12"))
        assert found.rule == "more than 12 boxes in one sentence"


def test_boxes_that_say_the_same_and_sentences_that_end_are_no_long_list() -> None:
    with Verifier() as verifier:
        assert verifier.judge(_boxes(12), ", ".join(map(str, range(12)))).is_correct
        assert verifier.judge(", ".join([r"\boxed{7}"] * 1_000), "7").is_correct
        assert verifier.judge(", ".join([r"\boxed{7}", r"\boxed{ 7 }", r"\boxed{\left. 7}"] * 300), "7").is_correct
        assert verifier.judge(", ".join([r"\boxed{1/2}", r"\boxed{0.5}"] * 300), "0.5").is_correct
        assert not verifier.judge(", ".join([r"\boxed{7}", r"\boxed{8}"] * 300), "7").is_correct
        assert verifier.judge(_boxes(100, ". ") + r". So \boxed{7}.", "7").is_correct
        assert verifier.judge(r"\boxed{" * 3 + "7" + "}" * 3 + ", or " + r"\boxed{7}", "7").is_correct


def test_a_gold_of_many_boxes_is_their_list() -> None:
    assert gold_text(_boxes(20)) == ", ".join(map(str, range(20)))


def _lists(piece: str, count: int) -> tuple[str, str]:
    """Return two lists of the same length of which all but one element differ from all of the other's but one."""
    return ", ".join(piece % i for i in range(count)), ", ".join(piece % (i + 1) for i in range(count))


@pytest.mark.parametrize(
    "piece", ["%d", "x=%d", "x<%d", r"\{%d,y\}", "(%d,x)", r"\sqrt{%d}", "3%d!", "2^{9%d}", "1e99%d"]
)
def test_long_lists_cost_no_more_comparisons_the_longer_they_are(piece: str, monkeypatch) -> None:
    compared = _counted("comparison.equal", "compare", monkeypatch)
    for count in (100, 200, 400):
        before = compared()
        assert not cheap_verdict(*_lists(piece, count), is_rounding=False)
        assert compared() - before < Effort().left / 10
    before = compared()
    first, second = _lists(piece, 150)
    assert extract(", ".join([rf"\boxed{{{first}}}", rf"\boxed{{{second}}}", rf"\boxed{{{first},0}}"])).text
    assert compared() - before < Effort().left / 10  # all pairs of boxes together


@pytest.mark.parametrize(
    "sentence", ["So she bakes 9 - 4 = 5 cakes.", "In 4 weeks, Tom earned $9 * 4 = $36.", "He has 5 left."]
)
def test_a_sentence_that_goes_from_words_on_to_a_number_is_not_read_as_an_expression(monkeypatch, sentence) -> None:
    read = _counted("extraction.prose", "is_mathematics", monkeypatch)
    assert extract(f"We add.\n{sentence}", last_number=True).text
    assert read() <= 1


def test_lists_within_lists_count_together(monkeypatch) -> None:
    compared = _counted("comparison.equal", "compare", monkeypatch)
    rows = [r"\{%s\}" % ",".join(str(i + j) for j in range(20)) for i in range(20)]  # noqa: UP031 - braces
    others = [row.replace("1", "8") for row in rows]
    assert cheap_verdict(",".join(rows), ",".join(others), is_rounding=False) is None
    assert compared() < Effort().left / 10


def test_lists_that_are_too_long_here_are_compared_by_a_worker() -> None:
    ascending, descending = (", ".join(map(str, values)) for values in (range(150), range(149, -1, -1)))
    found = _cheaply(rf"\boxed{{{descending}}}", ascending)
    assert found.kind is None
    with Verifier() as verifier:
        assert verifier.judge(rf"\boxed{{{descending}}}", ascending).is_correct
        assert verifier.judge(rf"\boxed{{{descending}7}}", ascending).kind is VerdictKind.WRONG
        assert verifier.equal(ascending, descending)
        steps = verifier.explain(JudgeRequest(text=rf"\boxed{{{descending}}}", gold=ascending)).steps
        assert any(step.rule == "more to compare than is done without a worker" for step in steps)


def test_brackets_behind_a_function_name_are_read_once_at_each_level(monkeypatch) -> None:
    read = _counted("reading.structure", "_bracket", monkeypatch)
    for name in ("P", "E"):
        for depth in (2, 4, 8, 16):
            before = read()
            answer.parsed.cache_clear()
            assert parse_answer(f"{name}(" * depth + "1" + ")" * depth) is not None
            assert read() - before == depth
    assert parse_answer("P(P(1)^2)") == parse_answer("P((P)((1)^2))")
    assert parse_answer("P(X = 2) + P(1)") == parse_answer("P(X = 2) + (P)(1)")


def test_a_text_that_is_too_long_to_read_is_not_kept() -> None:
    kept = answer.parsed.cache_info().currsize, answer.parsed_long.cache_info().currsize
    for i in range(50):
        assert parse_answer(f"x{i}" * 20_000) is None
    assert kept == (answer.parsed.cache_info().currsize, answer.parsed_long.cache_info().currsize)
    assert answer.parsed_long.cache_info().maxsize == 32


UNITS = [  # what a policy may repeat; %d counts
    r"\boxed{%d}, ", r"\boxed{%d} and ", "\\boxed{%d}\n", r"$\boxed{%d}$; ", r"\boxed{", r"\boxed{\boxed{%d}",
    r"\fbox{%d} or ", "(", ")", "[", "{", "}", r"\{", r"\(", r"\[", r"\left(", "(%d,", "{1", "()", "[[", "(1)", "]{",
    "**", "**%d** ", "*", "__%d__ ", "`", "```\n", "```text\n%d\n```\n", "$", "$$", "$%d$, ", "$$%d$$\n", "\\$%d ",
    "$x", "=", "= %d ", "x = %d\n", "x = ", "- %d\n", "%d. a\n", "1. ", "> ", "# ", "####", "#### %d\n", "<think>",
    "</think>", "<think>%d</think>", "<answer>", "</answer>", "<answer>%d</answer>", "<|im_end|>",
    "<|channel|>final<|message|>", "<<", "<<%d>>", "the answer is ", "The answer is %d or ", "Answer: %d\n",
    "**Answer: %d**\n", "answer ", "answer of ", "answer in x ", "答案是%d。", "Ответ: ", "wait ", "no, ", "hmm ",
    "that's wrong ", "let me check ", "it is right ", "not %d ", "%d or ", "%d, ", "%d ", "%d; ", "%d\n", "%d. ", ".",
    "!", "! ", "%d! ", "? ", ", ", ":", " ", "\t", "\n", " \n", "\u3000", "\\", "\\\\", "\\\\[", r"\,", r"\!", "~",
    "& ", "%", "^", "_", "^{", "_{}", r"\frac", r"\frac{1}{", r"\sqrt{", "√", "²", "½", r"\text{", r"\text{ a}",
    r"\text{and }", r"\begin{align}", "\\begin{align}x &= %d\\\\\\end{align}", r"\begin{cases}",
    r"\begin{pmatrix}%d & ", "[asy]", "[asy]x[/asy]", r"\pm %d ", r"(%d,%d)\cup", r"\to ", r"\Rightarrow ", "<", "|",
    "'", '"%d" ', "x", "x_", "ab ", "word ", "Hello world. ", "I think it is %d. ", "yes ", "yes or no ", "A", "(A) ",
    "(A) %d\n", "A. %d\n", "option A ", "either %d or ", "from %d to ", "at least ", "half of ", "minus %d ",
    "%d plus ", "%d equals ", "1/", "1,234,", "1,", "0.", "9", "1e9 ", "sin", "f(", "P(x", "(mod ", "%d base ",
    r"\sum", r"\binom{", r"\dot{3}", r"\overline{", "1\u0304", "\u202e", "\ud800", "\x00", "(since ", "(not ",
    "Hope this helps! ", "\n- ", " .", "$ ", r"\($", r"\color{red}{%d}", r"\large ", r"\tag{1}", r"\hspace{1pt}",
    "probably ", "%d (wrong) ", "alternatively ", "</s>", "𝟕", "\ufdfa", "%d:%d ", "5 cm ", "million ", "^\\circ ",
]  # fmt: skip
FRAMES = ["{}", r"\boxed{{{}}}", "**Answer: {}**", r"7 {}. So \boxed{{7}} it is"]


@pytest.mark.parametrize("frame", FRAMES)
def test_no_unit_repeated_to_48_kb_costs_half_a_second(frame: str) -> None:
    slow = {}
    for unit in UNITS:
        size = 48_000
        for is_again in (False, True):
            text = frame.format("".join(unit.replace("%d", str(i)) for i in range(size // len(unit)))[:size])
            start = time.process_time()
            judge_cheaply(JudgeRequest(text=text, gold="7", last_number=True, question="What is 3 + 4?"))
            seconds = time.process_time() - start
            if seconds < 0.5:
                break
            if is_again:  # not once by a pause of the garbage collector
                slow[unit] = seconds
    assert slow == {}


def test_figures_within_a_box_leave_no_long_run_of_spaces() -> None:
    start = time.process_time()
    _cheaply(r"\boxed{" + "[asy]x[/asy]" * 33_000 + "}", "7")
    assert time.process_time() - start < 1.0
