"""How near the path of a policy lies to a line, and how well its first part, drawn on, tells the rest.

RELEX (Wei et al., 2026, arXiv 2605.21468) finds that the updates of RL lie near one direction, along which they grow
nearly linearly, and predicts later checkpoints from the first 15 % of the steps: one direction from the versions seen,
a linear regression of what lies along it on the step. Here the space is that of the whole update, all matrices
together, and everything follows from the inner products of the versions. Left out: a direction for each matrix, and
what the predicted policy scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

SEEN = 0.15  # the share of the steps from which the rest is predicted
_FEWEST = 2  # versions that are seen, beside the start


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What the line through the start and the versions `seen` says of the others, the later ones.

    Updates are measured from the first version. `share` is what one direction, the best for all versions, holds of the
    sum of their squared norms: 1 is a line. For all kept steps: `along` is the part of the update along the direction
    of the versions seen, `beside` the norm of the rest, `fitted` the line of the regression. For the later steps:
    `errors` is the norm of prediction minus update over that of the update, `cosines` are those of the two, and
    `errors_if_still` are the errors of the prediction that all stays as in the last version seen.
    """

    seen: tuple[int, ...]
    share: float
    along: tuple[float, ...]
    beside: tuple[float, ...]
    fitted: tuple[float, ...]
    steps: tuple[int, ...]
    errors: tuple[float, ...]
    cosines: tuple[float, ...]
    errors_if_still: tuple[float, ...]


def fit_line(steps: Sequence[int], products_KK: torch.Tensor) -> Line | str:
    """Return the line of the versions of `steps`, given the inner products of their updates (fp64); or why there is
    none.
    """
    first, last = steps[0], steps[-1]
    bound = first + SEEN * (last - first)
    seen = [index for index, step in enumerate(steps) if first < step <= bound]
    later = [index for index, step in enumerate(steps) if step > bound]
    if len(seen) < _FEWEST or not later:
        return (
            f"of the first {SEEN:.0%} of the steps (up to step {bound:g}) there are {len(seen)} versions beside the "
            f"start, and a line needs {_FEWEST}"
        )
    start_K = products_KK[0]
    from_start_KK = products_KK - start_K[None] - start_K[:, None] + start_K[0]
    values, vectors = torch.linalg.eigh(from_start_KK[seen][:, seen])
    size = values[-1].clamp(min=0).sqrt()
    if not size > 0:
        return f"nothing was learned in the first {SEEN:.0%} of the steps (up to step {bound:g})"
    weights = vectors[:, -1] / size
    along_K = weights @ from_start_KK[seen]
    if along_K[seen[-1]] < 0:
        along_K = -along_K
    square_K = from_start_KK.diagonal().clamp(min=0)
    fitted_K = _regression(steps, [0, *seen], along_K)
    norm_L, fitted_L, along_L = square_K[later].sqrt(), fitted_K[later], along_K[later]
    still = seen[-1]
    if not bool((norm_L > 0).all()):
        return "a later version is the start again"
    apart_L = (fitted_L**2 - 2 * fitted_L * along_L + square_K[later]).clamp(min=0).sqrt()
    still_L = (square_K[still] - 2 * from_start_KK[still, later] + square_K[later]).clamp(min=0).sqrt()
    return Line(
        seen=tuple(steps[index] for index in seen),
        share=float(torch.linalg.eigvalsh(from_start_KK)[-1] / square_K.sum()),
        along=tuple(along_K.tolist()),
        beside=tuple((square_K - along_K**2).clamp(min=0).sqrt().tolist()),
        fitted=tuple(fitted_K.tolist()),
        steps=tuple(steps[index] for index in later),
        errors=tuple((apart_L / norm_L).tolist()),
        cosines=tuple((fitted_L.sign() * along_L / norm_L).clamp(-1, 1).tolist()),
        errors_if_still=tuple((still_L / norm_L).tolist()),
    )


def _regression(steps: Sequence[int], known: Sequence[int], along_K: torch.Tensor) -> torch.Tensor:
    """Return the least-squares line of `along_K` on the step, from the indices `known`, at all steps."""
    step_K = torch.tensor(steps, dtype=torch.float64)
    x, y = step_K[known], along_K[known]
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    return y.mean() + slope * (step_K - x.mean())
