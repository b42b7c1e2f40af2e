from math import exp, log

import pytest
import torch

from rlora.errors import ConfigError
from rlora.train.losses import LOSSES, LossConfig, LossInputs, k3

pytestmark = pytest.mark.unit


def evaluate(name, ratios, advantages, *, old_ratios=None, completions=None, **options):
    """Return losses, their gradients with respect to the log-probabilities, and clipped flags, for given ratios."""
    logprobs = torch.full((len(ratios),), -2.0, requires_grad=True)
    then = logprobs.detach() - torch.tensor(ratios).log()
    old = then if old_ratios is None else logprobs.detach() - torch.tensor(old_ratios).log()
    inputs = LossInputs(
        logprobs_N=logprobs,
        sampler_logprobs_N=then,
        old_logprobs_N=old,
        advantages_N=torch.tensor(advantages),
        completion_N=torch.tensor(completions or list(range(len(ratios)))),
    )
    outputs = LOSSES[name](inputs, LossConfig(name=name, **options))
    outputs.loss_N.sum().backward()
    return outputs.loss_N.tolist(), logprobs.grad.tolist(), outputs.logged["clipped_share"].tolist()


def test_importance_weighted_is_ratio_times_advantage() -> None:
    loss, gradient, clipped = evaluate("importance_weighted", [1.0, 2.0, 0.5], [1.0, -1.0, 0.5])
    assert loss == pytest.approx([-1.0, 2.0, -0.25])
    assert gradient == pytest.approx([-1.0, 2.0, -0.25])
    assert clipped == [False] * 3


def test_ppo_clips_only_where_the_ratio_went_too_far_in_the_advantages_direction() -> None:
    ratios, advantages = [1.5, 1.5, 0.5, 0.5, 1.1], [1.0, -1.0, 1.0, -1.0, 1.0]
    loss, gradient, clipped = evaluate("ppo", ratios, advantages, clip_low=0.2, clip_high=0.3)
    assert loss == pytest.approx([-1.3, 1.5, -0.5, 0.8, -1.1])
    assert gradient == pytest.approx([0.0, 1.5, -0.5, 0.0, -1.1])
    assert clipped == [True, False, False, True, False]


def test_ppo_measures_from_the_old_policy_not_from_the_sampler() -> None:
    loss, _, clipped = evaluate("ppo", [5.0], [1.0], old_ratios=[1.1])
    assert loss == pytest.approx([-1.1])
    assert clipped == [False]


def test_cispo_keeps_the_gradient_of_clipped_tokens() -> None:
    loss, gradient, clipped = evaluate("cispo", [3.0, 0.1, 1.0], [1.0, 1.0, -1.0], clip_low=0.2, clip_high=0.5)
    assert loss == pytest.approx([1.5 * 2, 0.8 * 2, -2.0])
    assert gradient == pytest.approx([-1.5, -0.8, 1.0])
    assert clipped == [True, True, False]


def test_truncated_cuts_large_weights_alone() -> None:
    loss, gradient, clipped = evaluate("truncated", [3.0, 0.1], [1.0, 1.0], max_ratio=2.0)
    assert loss == pytest.approx([4.0, 0.2])
    assert gradient == pytest.approx([-2.0, -0.1])
    assert clipped == [True, False]


def test_gspo_uses_the_geometric_mean_of_a_completions_ratios() -> None:
    loss, gradient, clipped = evaluate("gspo", [1.0, 1.21, 4.0], [1.0, 1.0, -1.0], completions=[0, 0, 1])
    assert loss == pytest.approx([-1.1, -1.1, 4.0])
    assert gradient == pytest.approx([-1.1, -1.1, 4.0])  # each token moves both tokens' ratio by half
    assert clipped == [False, False, False]


def test_reinforce_ignores_the_ratio() -> None:
    loss, gradient, _ = evaluate("reinforce", [7.0, 0.1], [1.0, -0.5])
    assert loss == pytest.approx([2.0, -1.0])
    assert gradient == pytest.approx([-1.0, 0.5])


def test_k3_is_zero_for_equal_and_its_mean_is_the_divergence() -> None:
    p, q = torch.tensor([0.7, 0.3]), torch.tensor([0.5, 0.5])
    values = k3(p.log(), q.log())
    assert float((p * values).sum()) == pytest.approx(0.7 * log(0.7 / 0.5) + 0.3 * log(0.3 / 0.5))
    assert values.tolist() == pytest.approx([exp(log(5 / 7)) - 1 - log(5 / 7), exp(log(5 / 3)) - 1 - log(5 / 3)])
    assert float(k3(p.log(), p.log()).abs().max()) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_low": 2.0}, "clip_low must be in"),
        ({"max_ratio": 0.5}, "loss.max_ratio is 0.5; it must be at least 1"),
        ({"kl_coefficient": -1.0}, "loss.kl_coefficient is -1.0"),
    ],
)
def test_wrong_options_are_refused(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        LossConfig(**options).check()
