"""AdamW on a policy's flat vector, its rate over the updates, and its options."""

import math
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch

from rlora.errors import ConfigError
from rlora.lora.flat import FlatVector

_MAX_NUMBER = 1e38  # a third of what fp32 holds

ScheduleName = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW on the policy's flat fp32 vector."""

    learning_rate: float = 1e-4
    """Peak learning rate; for rank 1 and alpha 32, 2e-5 to 2e-4 is known to be good on 1.7B models, 1.5e-4 to 1e-3 on
    the bundled one; `rlora check` tells for others.
    """
    b_rate_ratio: float = 1.0
    """LoRA+: the learning rate of B over that of A, which is --optimizer.learning-rate; 1 is plain LoRA."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay, a fraction of the learning rate."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm; 0 turns clipping off."""
    schedule: ScheduleName = "constant"
    """constant, linear (to 0) or cosine (to 0)."""
    warmup_steps: int = 0
    """Updates over which the rate rises linearly from 0."""
    schedule_steps: int = 100
    """Length of a linear or cosine schedule in updates, warm-up included; --num-steps does not move it."""
    updates_per_batch: int = 1
    """Optimizer steps on each batch."""

    def check(self) -> None:
        """Raise ConfigError for a value that breaks a rule."""
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ConfigError(f"optimizer.learning_rate is {self.learning_rate}; it must be above 0. Try 1e-4.")
        if not (self.b_rate_ratio > 0 and math.isfinite(self.b_rate_ratio)):
            raise ConfigError(f"optimizer.b_rate_ratio is {self.b_rate_ratio}; it must be above 0. LoRA+ takes 16.")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ConfigError(f"optimizer.beta1 is {self.beta1} and beta2 {self.beta2}; both must be in [0, 1).")
        if self.epsilon < 0 or self.weight_decay < 0 or self.max_grad_norm < 0:
            raise ConfigError("optimizer.epsilon, weight_decay and max_grad_norm must be at least 0.")
        if self.warmup_steps < 0 or self.schedule_steps < 1 or self.updates_per_batch < 1:
            raise ConfigError(
                "optimizer.warmup_steps must be at least 0, schedule_steps and updates_per_batch at least 1."
            )


def learning_rate_at(config: OptimizerConfig, step: int) -> float:
    """Return the learning rate of the update that takes version `step` to `step` + 1."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    length = max(1, config.schedule_steps - config.warmup_steps)
    progress = min(1.0, max(0.0, (step - config.warmup_steps) / length))
    decay = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[config.schedule]
    return config.learning_rate * warmup * decay


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Piece:
    """A part of the vector that has one learning rate: `ratio` times that of A."""

    part: slice
    ratio: float
    parameter: torch.nn.Parameter


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OptimizerState:
    """AdamW's moments, fp32 on the CPU, and how many updates there were."""

    first_moment_D: torch.Tensor
    second_moment_D: torch.Tensor
    num_updates: int


class FlatAdamW:
    """AdamW on a policy's vector: one parameter, or with LoRA+ the runs of A's and of B's numbers in it.

    AdamW treats each number by itself, so the cut moves no number, and the state is that of the whole vector.
    """

    def __init__(self, flat: FlatVector, config: OptimizerConfig):
        """Optimize `flat.theta_D` in place by the gradient in `flat.grad_D`.

        PyTorch's fused update is one pass over memory instead of ten, and asks for none: it cannot fail half-way.
        """
        self._theta_D, self._config = flat.theta_D, config
        self._pieces = _cut(flat, config.b_rate_ratio)
        self._adamw = torch.optim.AdamW(
            [{"params": [piece.parameter]} for piece in self._pieces],
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )
        for piece in self._pieces:  # the moments are there from the start: no first update runs out of memory for them
            self._adamw.state[piece.parameter] = {
                "step": torch.tensor(0.0, device=piece.parameter.device),
                "exp_avg": torch.zeros_like(piece.parameter),
                "exp_avg_sq": torch.zeros_like(piece.parameter),
            }

    def step(self, learning_rate: float) -> None:
        """Make one update with this rate for A, and `b_rate_ratio` times it for B."""
        for group, piece in zip(self._adamw.param_groups, self._pieces, strict=True):
            group["lr"] = learning_rate * piece.ratio
        self._adamw.step()

    def stays_finite(self, learning_rate: float, grad_norm: float) -> bool:
        """Return whether the update by a gradient of this norm surely leaves numbers and moments finite, by bounds on
        the largest of them; False where it may not.
        """
        config, bound = self._config, 0.0
        for piece in self._pieces:
            state = self._adamw.state[piece.parameter]
            theta, first, second = map(_magnitude, (piece.parameter, state["exp_avg"], state["exp_avg_sq"]))
            first, rate = max(grad_norm, first), learning_rate * piece.ratio
            divisor = config.epsilon * (1 - config.beta1 ** (float(state["step"]) + 1))
            change = rate * first / divisor if divisor else math.inf
            bound = max(bound, first, second, theta, grad_norm**2, theta * (1 + rate * config.weight_decay) + change)
        return bound < _MAX_NUMBER

    def is_finite(self) -> bool:
        """Return whether all numbers and moments are finite."""
        states = [self._adamw.state[piece.parameter] for piece in self._pieces]
        moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]
        return all(math.isfinite(_magnitude(tensor)) for tensor in (self._theta_D, *moments))

    def state(self) -> OptimizerState:
        """Return a copy of the moments and the number of updates; zeros before the first."""
        moments = {name: torch.zeros_like(self._theta_D) for name in ("exp_avg", "exp_avg_sq")}
        num_updates = 0
        for piece in self._pieces:
            state = self._adamw.state[piece.parameter]
            for name, moment_D in moments.items():
                moment_D[piece.part] = state[name]
            num_updates = int(state["step"])
        return OptimizerState(
            first_moment_D=moments["exp_avg"].cpu(),
            second_moment_D=moments["exp_avg_sq"].cpu(),
            num_updates=num_updates,
        )

    def restore(self, state: OptimizerState) -> None:
        """Go on from a state that `state` returned."""
        for piece in self._pieces:
            state_of = self._adamw.state[piece.parameter]
            state_of["step"].fill_(float(state.num_updates))
            state_of["exp_avg"].copy_(state.first_moment_D[piece.part])
            state_of["exp_avg_sq"].copy_(state.second_moment_D[piece.part])


def _magnitude(tensor: torch.Tensor) -> float:
    """Return the largest absolute value, without a copy; infinity where one is NaN."""
    low, high = (float(value) for value in tensor.detach().aminmax())
    return math.inf if math.isnan(high) else max(-low, high)


def _cut(flat: FlatVector, b_rate_ratio: float) -> list[_Piece]:
    """Return the parts of the vector that have one rate, as parameters that view the vector and its gradient."""
    parts = [(slice(0, flat.theta_D.numel()), 1.0)]
    if b_rate_ratio != 1:
        parts = []
        for is_b, slots in groupby(flat.slots, key=lambda slot: slot.name.endswith(".lora_B")):
            run = list(slots)
            parts.append((slice(run[0].offset, run[-1].offset + run[-1].size), b_rate_ratio if is_b else 1.0))
    pieces = []
    for part, ratio in parts:
        parameter = torch.nn.Parameter(flat.theta_D[part])
        parameter.grad = flat.grad_D[part]
        pieces.append(_Piece(part=part, ratio=ratio, parameter=parameter))
    return pieces
