"""Which learning rate to start from: windows measured on two models, scaled by a fitted rule to others.

The rule is that of "LoRA Without Regret" (doi 10.64434/tml.20250929): LoRA's best rate in supervised fine-tuning is
5e-5 x 10 x (2000 / hidden size)^p with p 0.781 for Llama and 0.0775 for Qwen, nearly the same for all ranks, and for
runs of fewer than about 100 updates half as much again. Reinforcement learning takes 5 to 50 times less, so that only
the rule's shape is used here, anchored at what was measured. What counts is alpha x rate, so another alpha moves it.
"""

from dataclasses import dataclass
from typing import Literal

Method = Literal["lora", "full"]
_EXPONENTS = {"llama": (0.781,), "qwen": (0.0775,)}
_SHORT_RUN = 100  # updates; longer runs take 10 where shorter ones take 15
_LONG = 10 / 15


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """Rates at which a model learned, at alpha 32 for LoRA, in runs of fewer than 100 updates; and from where."""

    hidden_size: int
    low: float
    high: float
    start: float
    source: str
    is_long: bool = False
    """Whether the run had more than 100 updates, so that its rates are those of long runs already."""


_QWEN3 = {
    "lora": _Measured(
        hidden_size=2048,
        low=2e-5,
        high=2e-4,
        start=6e-5,
        source="public runs of Qwen3-1.7B on MATH, rank 1, 50 updates; collapse from 2.5e-4 on",
    ),
    "full": _Measured(
        hidden_size=2048,
        low=9e-6,
        high=2.5e-5,
        start=2e-5,
        source="public runs of Qwen3-1.7B on MATH, every weight trained; collapse at 5e-5",
    ),
}
_BUNDLED = _Measured(
    hidden_size=576,
    low=1.5e-4,
    high=1e-3,
    start=6e-4,
    source="the bundled model on arithmetic, rank 1, 14 to 28 updates (docs/log.md); no others tried",
)
_BUNDLED_ON_WORDS = _Measured(  # of problems that it hardly solves
    hidden_size=576,
    low=1e-4,
    high=2e-4,
    start=1.5e-4,
    source="the bundled model on GSM8K, rank 1, 120 updates at 1.5e-4 with --consensus-penalty 0.5; at 3e-4 without it "
    "all answers became the same (docs/log.md)",
    is_long=True,
)
_EASY = (None, "arithmetic", "digits")  # data on which the first of the two was measured, or none named
_MODELS = {
    "qwen3-1.7b": _QWEN3,
    "qwen3-1.7b-base": _QWEN3,
    "bundled": {"lora": _BUNDLED},
    "smollm2-135m-instruct": {"lora": _BUNDLED},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """A learning rate to start from and the window around it, for one alpha; `is_measured` on this very model."""

    rate: float
    low: float
    high: float
    alpha: float
    is_measured: bool
    source: str

    def __str__(self) -> str:
        """Return it in both units: rate, and alpha x rate."""
        return (
            f"{self.rate:.1e} (alpha x rate {self.alpha * self.rate:.1e}), window {self.low:.1e} to {self.high:.1e} "
            f"({self.alpha * self.low:.1e} to {self.alpha * self.high:.1e}); {self.source}"
        )

    def warning(self, rate: float) -> str | None:
        """Return what is wrong with a rate outside the window, None for one inside."""
        if self.low * (1 - 1e-9) <= rate <= self.high * (1 + 1e-9):
            return None
        side = "below" if rate < self.low else "above"
        risk = "little may be learned" if rate < self.low else "the policy may collapse"
        return f"the learning rate {rate:.1e} is {side} the known window, {self.low:.1e} to {self.high:.1e}, so {risk}."


_FULL_RATE, _LORA_FACTOR, _SUPERVISED_WINDOW = 5e-5, 10.0, (0.25, 2.0)


def recommend_supervised(
    *, model_type: str, hidden_size: int, method: Method = "lora", alpha: float = 32.0, num_steps: int = 50
) -> Recommendation:
    """Return the rate to start supervised fine-tuning from: 5e-5 x (2000 / hidden size)^p for every weight, ten times
    that for LoRA, and fifteen times for runs of fewer than 100 updates.

    The window is a choice, a quarter to twice of it, since the rule was fitted to no better. Where no exponent is known
    for a family, the rate lies between that of Llama's and that of Qwen's.

    Example:
        >>> round(recommend_supervised(model_type="llama", hidden_size=2000, num_steps=200).rate, 6)
        0.0005
    """
    used = next((p for family, p in _EXPONENTS.items() if model_type.startswith(family)), (0.0775, 0.781))
    scaled = sorted((2000 / hidden_size) ** exponent for exponent in used)
    factor = 1.0 if method == "full" else _LORA_FACTOR / _LONG if num_steps < _SHORT_RUN else _LORA_FACTOR
    alpha = 1.0 if method == "full" else alpha
    rates = [_FULL_RATE * factor * each * (1 if method == "full" else 32 / alpha) for each in (scaled[0], scaled[-1])]
    low, high = _SUPERVISED_WINDOW
    words = "full fine-tuning" if method == "full" else f"{factor:.0f} times full fine-tuning's"
    return Recommendation(
        rate=(rates[0] * rates[1]) ** 0.5,
        low=rates[0] * low,
        high=rates[1] * high,
        alpha=alpha,
        is_measured=False,
        source=f"the rule for supervised training (doi 10.64434/tml.20250929), {words}, hidden size {hidden_size}, "
        f"{num_steps} updates; the window is a quarter to twice of it",
    )


def recommend(
    *,
    model_name: str,
    model_type: str,
    hidden_size: int,
    method: Method = "lora",
    rank: int = 1,
    alpha: float = 32.0,
    num_steps: int = 50,
    data: str | None = None,
) -> Recommendation:
    """Return the rate to start reinforcement learning from.

    `model_type` and `hidden_size` are those of the model's configuration; `alpha` is that of plain scaling by alpha /
    rank, and not read for full fine-tuning. The rank moves nothing: the best rates of ranks 4 and 512 differ by less
    than a factor of two, and that of rank 1 is a little lower. `data` names what is trained on, None where that is not
    known: the bundled model bears less where it hardly solves a problem.
    """
    assert rank >= 1
    known = _MODELS.get(model_name.rstrip("/").rpartition("/")[2].lower(), {})
    is_measured = method in known
    anchor = known.get(method, _QWEN3[method])
    if anchor is _BUNDLED and data not in _EASY:
        anchor = _BUNDLED_ON_WORDS
    factors, source = (1.0, 1.0), f"measured: {anchor.source}"
    if not is_measured:
        exponents = next((p for family, p in _EXPONENTS.items() if model_type.startswith(family)), None)
        used = exponents or (0.0775, 0.781)
        scaled = sorted((anchor.hidden_size / hidden_size) ** exponent for exponent in used)
        factors = (scaled[0], scaled[-1])
        family = f"exponent {used[0]}" if exponents else "no exponent is known for this family: both Llama's and Qwen's"
        source = f"scaled to hidden size {hidden_size} ({family}) from {anchor.source}"
    if method == "full":
        alpha = length = 1.0
    else:
        is_shortened = num_steps >= _SHORT_RUN and not anchor.is_long
        length = _LONG if is_shortened else 1.0
        source += f"; {num_steps} updates: times 10/15" if is_shortened else ""
        factors = (factors[0] * 32 / alpha, factors[1] * 32 / alpha)
    return Recommendation(
        rate=anchor.start * (factors[0] * factors[1]) ** 0.5 * length,
        low=anchor.low * factors[0] * length,
        high=anchor.high * factors[1],
        alpha=alpha,
        is_measured=is_measured,
        source=source,
    )
