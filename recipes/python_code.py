"""Teach a model to write Python functions: rewarded where they pass a problem's tests, run without network.

    rlora train recipes/python_code.py                (two CPU cores, the bundled model)
    rlora train recipes/python_code.py --preset toy   (random weights, seconds; for tests)

A problem's answer is the text of its tests. docs/rewards.md says what the programs can and cannot do. Tasks of your own
are a file: `--train tasks.jsonl --answer-field tests --reward rlora.rewards.python_code:score`. No result is stated:
what a model learns here was not measured.
"""

from dataclasses import replace

from rlora.recipe import main
from rlora.recipes import arithmetic
from rlora.tasks import DataConfig, Task
from rlora.types import Problem, SamplingParams

KINDS = {  # what f(x) is, in words and as Python, for a number n
    "x plus {n}": "x + {n}",
    "x times {n}": "x * {n}",
    "the remainder of x divided by {n}": "x % {n}",
    "the larger of x and {n}": "max(x, {n})",
    "the list of the first {n} multiples of x, x first": "[x * i for i in range(1, {n} + 1)]",
    "the text of x, {n} times": "str(x) * {n}",
}
NUMBERS = range(2, 12)


def read(split, data):
    """Return functions to write; those of every fifth number are for the test."""
    numbers = [n for n in NUMBERS if (n % 5 == 0) == (split == "test")]
    return [_problem(split, words.format(n=n), code.format(n=n)) for words, code in KINDS.items() for n in numbers]


def _problem(split, words, code):
    tests = "\n".join(f"assert f({x}) == {eval(code, {'x': x})!r}" for x in (1, 3, 10, 57))
    question = f"Write a Python function f(x) that returns {words}."
    return Problem(id=f"{split}/{words}", question=question, answer=tests, source="python_code")


functions = Task(
    read=read, instruction="Answer with the code alone, in a ```python block.", judge="rlora.rewards.python_code:score"
)
CHANGES = {"data": DataConfig(name="python_code:functions"), "consensus_penalty": 0.0}
CPU = replace(arithmetic.CPU, run_dir="runs/python-code", sampling=SamplingParams(max_tokens=96), **CHANGES)
TOY = replace(arithmetic.TOY_PRESET, run_dir="runs/python-code-toy", samples_per_problem=4, **CHANGES)
PRESETS = {"cpu": CPU, "toy": replace(TOY, sampler=replace(TOY.sampler, max_prompt_tokens=400))}

if __name__ == "__main__":
    main(PRESETS, description=__doc__)
