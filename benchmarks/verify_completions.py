"""Completions that say the gold, another value, several values or nothing, by construction."""

import random
from collections.abc import Callable

from benchmarks.verify_pairs import VALUES, Case, Cases


def _cases(category: str, gold: str, right: list[str], wrong: list[str], *, is_truncated: bool = False) -> Cases:
    for texts, is_equal in ((right, True), (wrong, False)):
        for text in texts:
            yield Case(category=category, text=text, gold=gold, is_equal=is_equal, is_truncated=is_truncated)


def _numbers(r: random.Random) -> tuple[str, str]:
    a, b = r.sample(range(2, 5000), 2)
    return str(a), str(b)


def marks(r: random.Random) -> Cases:
    g, o = _numbers(r)
    frames = [
        "The answer is {}.",
        "#### {}",
        "**Answer:** {}",
        "Final answer: ${}$",
        r"\boxed{{{}}}",
        "<answer>{}</answer>",
        r"Therefore, the final answer is: $\boxed{{{}}}$. I hope it is correct.",
        "So there are {} apples.",
        "Adding up gives **{}**.",
        "Thus we get\n\n$${}$$",
        "x = {}",
        r"\[ x = {} \]",
        "Result: `{}`",
    ]
    yield from _cases("marks", g, [f.format(g) for f in frames], [f.format(o) for f in frames])
    override = [
        r"\boxed{{{}}} is what I first thought. The answer is {}.",
        "Answer: {}\n\nAnswer: {}",
        r"\boxed{{{}}} \boxed{{{}}}",
    ]
    yield from _cases("marks", g, [override[i].format(o, g) for i in (0, 1)], [f.format(g, o) for f in override])


def candidates(r: random.Random) -> Cases:
    g, o = _numbers(r)
    frames = [
        "The answer is {} or {}.",
        r"\boxed{{{} \text{{ or }} {}}}",
        r"It is $\boxed{{{}}}$ or $\boxed{{{}}}$.",
        "{}, {}",
        "The answer is either {} or {}.",
        r"\boxed{{{}, {}}}",
        r"The answers are \boxed{{{}}} and \boxed{{{}}}.",
        "Answer: {} and {}",
        "#### {} or {}",
        "**{}** or **{}**",
    ]
    wrong = [f.format(*pair) for f in frames for pair in ((g, o), (o, g))]
    listed = ", ".join(sorted({g, *map(str, r.sample(range(1000), 12))}))
    sides = [f"{g} = {o}", rf"\boxed{{{o} = {g}}}", f"{g} + {o}"]
    yield from _cases("several candidates", g, [], [*wrong, rf"\boxed{{{listed}}}", listed, *sides])
    pair = f"{g}, {o}"
    yield from _cases(
        "several candidates", pair, [f.format(o, g) for f in frames if "either" not in f], [f"{g}", rf"\boxed{{{o}}}"]
    )


def truncated(r: random.Random) -> Cases:
    g, o = _numbers(r)
    wrong = [
        f"We compute {o} + {int(g) - int(o)} = {g}. Next we need to",
        f"so x = {g}, and then",
        rf"\boxed{{{g}",
        f"The answer is {g}",
        rf"Let $y = {g}$. Then $y + {o} =",
        f"{g}",
        f"Step 1: {g}\nStep 2:",
        rf"<think>I get \boxed{{{g}}}",
    ]
    yield from _cases(
        "truncated",
        g,
        [rf"The answer is \boxed{{{g}}}. Let me also check", f"The answer is {g}. To verify"],
        wrong,
        is_truncated=True,
    )
    ended = [
        rf"\boxed{{{g}",
        f"<think>{g}",
        rf"<think>So \boxed{{{g}}}. But",
        f"{o} + {int(g) - int(o)} = {g}, so we get",
    ]
    yield from _cases("truncated", g, [], ended)


def thinking(r: random.Random) -> Cases:
    g, o = _numbers(r)
    frames = [
        "<think>maybe {1}</think>\nThe answer is {0}.",
        r"<think>\boxed{{{1}}}</think>{0}",
        r"\boxed{{{1}}}. Wait, that's wrong. \boxed{{{0}}}",
        r"It is {1}. Hold on, I made a mistake. The answer is \boxed{{{0}}}.",
        "{1}?</think>\n\n**{0}**",
        "The answer is {1}. Let me recheck. Actually, the answer is {0}.",
    ]
    right = [f.format(g, o) for f in frames]
    wrong = [f.format(o, g) for f in frames]
    wrong += [
        rf"<think>\boxed{{{g}}}</think>I cannot tell.",
        rf"\boxed{{{g}}} wait, no, that is wrong. It should be {o}.",
    ]
    yield from _cases("code and thinking", g, right, wrong)
    code = ["```\n{}\n```", "The output is:\n```text\n{}\n```", "```latex\n{}\n```", "Thus the value is `{}`."]
    program = [f"```python\nprint({g})\n```", f"```python\nx = {o}\n```\nOutput:\n```\n{o}\n```"]
    yield from _cases("code and thinking", g, [f.format(g) for f in code], [*(f.format(o) for f in code), *program])


def choices(r: random.Random) -> Cases:
    g, o = r.sample("ABCDE", 2)
    n = r.randint(2, 99)
    frames = [
        "({})",
        r"\boxed{{{}}}",
        r"\boxed{{\textbf{{({})}}}}",
        "The answer is ({}).",
        "The correct answer is **{}**.",
        r"\boxed{{\text{{{}}}}}",
        "Answer: {})",
        "Option {}",
        f"The answer is ({{}}) {n}.",
    ]
    both = [f"({o}) or ({g})", rf"\boxed{{{g}, {o}}}", f"({g}) {n} ({o}) {n + 1}", f"The answer is {g} or {o}."]
    right = [f.format(g) for f in frames] + [rf"\boxed{{{g.lower()}}}"]
    yield from _cases("text and choices", g, right, [*(f.format(o) for f in frames), *both, rf"\boxed{{{n}}}"])
    word, other = r.choice(
        [("yes", "no"), ("even", "odd"), ("ellipse", "parabola"), ("Monday", "Friday"), ("east", "west")]
    )
    right = [
        rf"\boxed{{\text{{{word}}}}}",
        rf"\boxed{{\mathrm{{{word.capitalize()}}}}}",
        f"**{word}**",
        f"The answer is {word}.",
    ]
    yield from _cases(
        "text and choices",
        rf"\text{{{word}}}",
        right,
        [t.replace(word, other).replace(word.capitalize(), other) for t in right],
    )


def nothing(r: random.Random) -> Cases:
    g, _ = _numbers(r)
    wrong = [
        "",
        " ",
        r"\boxed{}",
        r"\boxed{ }",
        "I do not know.",
        "The answer is",
        "####",
        "?",
        "...",
        "$$",
        r"\boxed{\text{none}}",
        "Let me think about this problem.",
        f"Is it {g}?",
        f"The answer is not {g}.",
    ]
    yield from _cases("no answer", g, [], wrong)


COMPLETIONS: tuple[Callable[[random.Random], Cases], ...] = (
    marks, candidates, truncated, thinking, choices, nothing,
)  # fmt: skip


def cases(rounds: int, seed: int = 0) -> list[Case]:
    """Return the cases of every construction, `rounds` times with other numbers."""
    r = random.Random(seed)
    return [case for _ in range(rounds) for make in (*VALUES, *COMPLETIONS) for case in make(r)]
