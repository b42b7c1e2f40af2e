"""Have a base's products compiled before the first step, on made-up rows.

A product for any number of rows is divided among threads by the sizes that it meets first. These are always the same
here, so that neither a run's data nor the step at which it goes on decide what is computed with.
"""

from rlora.train.batching import made_up_row, stack
from rlora.train.policy import Policy


def warm_up(policy: Policy) -> None:
    """Score and differentiate one row and two; the gradient is left at zero. Does nothing where none is compiled."""
    if not policy.base.products.is_compiled:
        return
    row = made_up_row(32, 64, num_completions=2)
    for num_rows in (2, 1):
        policy.score(stack([row] * num_rows).to(policy.device)).logprobs_N.sum().backward()
    policy.flat.zero_grad()
