"""Prompts, completions and verdicts as a person reads them on a terminal."""

from collections.abc import Iterator

from rlora.evaluation.engine import Benchmark
from rlora.rewards import Judge, explain
from rlora.types import Prompt, Sample


def asked(benchmark: Benchmark, prompt: Prompt) -> Iterator[str]:
    """Yield a prompt as the model gets it, below what is known of it."""
    kind = "chat" if benchmark.renderer.is_chat else "plain"
    problem = prompt.problem
    yield ""
    yield f"=== {problem.id}, {kind} template, {len(prompt.token_ids)} tokens, gold {problem.answer!r}"
    yield prompt.text


def judged(judge: Judge, sample: Sample) -> Iterator[str]:
    """Yield a completion, and how it was judged."""
    completion = sample.completion
    yield f"--- {len(completion.token_ids)} tokens, ended by {completion.stop.value}"
    yield completion.text
    yield "---"
    yield from explain(judge, sample)
