"""Makers of records for tests."""

from collections.abc import Sequence
from dataclasses import replace

from rlora.types import Completion, Group, Problem, Prompt, Rollout, Sample, StopReason, Verdict, VerdictKind


def completion(
    tokens: Sequence[int], *, logprob: float = -1.0, version: int = 0, stop: StopReason = StopReason.END
) -> Completion:
    return Completion(
        token_ids=tuple(tokens),
        logprobs=tuple(logprob - 0.1 * index for index in range(len(tokens))),
        text="",
        stop=stop,
        policy=0,
        version=version,
    )


def group(
    prompt: Sequence[int], completions: Sequence[Completion], rewards: Sequence[float], *, name: str = "p"
) -> Group:
    problem = Problem(id=name, question="", answer="", source="test")
    return Group(
        prompt=Prompt(problem=problem, text="", token_ids=tuple(prompt)),
        rollouts=tuple(
            Rollout(
                completion=one,
                verdict=Verdict(kind=VerdictKind.CORRECT if reward else VerdictKind.WRONG, reward=reward),
            )
            for one, reward in zip(completions, rewards, strict=True)
        ),
    )


def sample(text: str, *, answer: str = "7", question: str = "What is 3 + 4?", is_cut: bool = False) -> Sample:
    stop = StopReason.LENGTH if is_cut else StopReason.END
    return Sample(
        problem=Problem(id="p/1", question=question, answer=answer, source="t"),
        completion=replace(completion([1], stop=stop), text=text),
    )
