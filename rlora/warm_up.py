"""Have a policy's kernels compiled before the first step, on made-up rows.

A kernel for any number of rows is divided among threads by the sizes that it meets first. These are always the same
here, so that neither a run's data nor the step at which it goes on decide what is computed with.
"""

from rlora.batching import MicroBatch, Row, stack
from rlora.policy import Policy
from rlora.types import Completion, StopReason

_PROMPT, _COMPLETION, _NUM_COMPLETIONS = 32, 64, 2


def warm_up(policy: Policy) -> None:
    """Score and differentiate one row and two; the gradient is left at zero. Does nothing without compiled kernels."""
    if policy.kernels is None:
        return
    for num_rows in (2, 1):
        policy.score(_rows(num_rows).to(policy.device)).logprobs_N.sum().backward()
    policy.flat.zero_grad()


def _rows(num_rows: int) -> MicroBatch:
    completion = Completion(
        token_ids=(0,) * _COMPLETION, logprobs=(0.0,) * _COMPLETION, text="", stop=StopReason.END, policy=0, version=0
    )
    row = Row(prompt=(0,) * _PROMPT, completions=(completion,) * _NUM_COMPLETIONS, advantages=(0.0,) * _NUM_COMPLETIONS)
    return stack([row] * num_rows)
