"""How often each training problem was solved, and hence how much may be learnt from sampling it again.

A group teaches only if it is neither all right nor all wrong. With a problem's solve rate p under a Beta posterior of
what was seen, the chance of a mixed group of G samples is 1 - E[p^G] - E[(1 - p)^G], which has a closed form. The
policy changes, so what was seen loses weight with every new visit. Left out: difficulty labels of data sets; the rate
that is measured on this policy is the one that counts.
"""

import math

import torch

KEPT = 0.5  # weight that earlier visits keep at a new one
LEAST = 0.1  # chance that a problem is drawn however little it promises: the policy may have learnt or forgotten it


class SolveRates:
    """Weighted counts of right and wrong rollouts of each of P problems: `counts_P2`, fp64, right first."""

    def __init__(self, num_problems: int, group_size: int, counts_P2: torch.Tensor | None = None):
        """Start with nothing seen, or go on from the counts of a checkpoint."""
        self.counts_P2 = torch.zeros(num_problems, 2, dtype=torch.float64) if counts_P2 is None else counts_P2.clone()
        self._group_size = group_size

    def observe(self, index: int, *, num_right: int, num_wrong: int) -> None:
        """Count a group of rollouts of a problem."""
        self.counts_P2[index] = KEPT * self.counts_P2[index] + torch.tensor([num_right, num_wrong])

    def chance(self, index: int) -> float:
        """Return the probability with which a problem is drawn when its turn comes, in [LEAST, 1].

        It is the chance of a mixed group, relative to that of a problem never seen, which is always drawn.
        """
        right, wrong = self.counts_P2[index].tolist()
        return min(1.0, max(LEAST, self._mixed(right, wrong) / self._mixed(0.0, 0.0)))

    def _mixed(self, right: float, wrong: float) -> float:
        """Return 1 - E[p^G] - E[(1 - p)^G] for p ~ Beta(1 + right, 1 + wrong)."""
        return 1 - _power(1 + right, 1 + wrong, self._group_size) - _power(1 + wrong, 1 + right, self._group_size)


def _power(a: float, b: float, exponent: int) -> float:
    """Return E[p^exponent] for p ~ Beta(a, b)."""
    return math.exp(math.lgamma(a + exponent) - math.lgamma(a) + math.lgamma(a + b) - math.lgamma(a + b + exponent))
