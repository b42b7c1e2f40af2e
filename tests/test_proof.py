import math

import pytest
import torch
from support import liars
from support.engines import random_b, spec
from support.policies import TOY_MODEL, make_policy
from support.rollouts import completion

from rlora.errors import StaleAdapterError
from rlora.lora.config import LoraConfig
from rlora.proof.canary import canary_prompts
from rlora.proof.comparison import compare
from rlora.proof.evidence import first_occurrences
from rlora.proof.hot_swap import HotSwap
from rlora.proof.probe import NUM_PROBES
from rlora.sampler.base import SamplerConfig
from rlora.sampler.torch_sampler import TorchSampler
from rlora.train.policy import Policy
from rlora.types import SamplingParams

pytestmark = pytest.mark.unit


def test_compare_finds_where_the_sampler_lies() -> None:
    new, other = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.5, -2.0, -2.0])
    assert compare(new, new, other, noise=0.0).served_fraction == pytest.approx(1)
    assert compare(other, new, other, noise=0.0).served_fraction == pytest.approx(0)
    halfway = compare((new + other) / 2, new, other, noise=0.0)
    assert halfway.served_fraction == pytest.approx(0.5)
    assert halfway.error == halfway.other_error == pytest.approx(math.sqrt((0.25**2 + 0.5**2) / 3))
    assert not halfway.is_decided


@pytest.mark.parametrize(("distance", "is_decided"), [(0.0, False), (0.01, False), (0.05, False), (0.3, True)])
def test_compare_never_decides_wrongly_under_noise_and_decides_when_it_can(distance, is_decided) -> None:
    """Rounding of 0.03 nats in sampler and trainer, in each version its own, as bf16 has it; 24 tokens.

    At distance 0 the served fraction is about 1/2 for anything: it must not be taken for an answer.
    """
    random = torch.Generator().manual_seed(0)
    num_decided = 0

    def rounding() -> torch.Tensor:
        return 0.03 * torch.randn(24, generator=random)

    for _ in range(2000):
        new = -3 * torch.rand(24, generator=random)
        other = new + distance * torch.randn(24, generator=random)
        trainer_new, trainer_other = new + rounding(), other + rounding()
        honest = compare(new + rounding(), trainer_new, trainer_other, noise=0.04)
        stale = compare(other + rounding(), trainer_new, trainer_other, noise=0.04)
        assert not honest.is_stale
        assert stale.is_stale == stale.is_decided
        num_decided += honest.is_decided
    assert num_decided >= 1950 if is_decided else num_decided <= 20


def test_one_uncertain_token_that_agrees_by_chance_decides_nothing() -> None:
    """Seen after 24 updates: nine certain tokens, and one that happened to have the previous version's probability."""
    certain = torch.full((9,), -1e-4)
    sampler, new, other = (torch.cat([certain, torch.tensor([value])]) for value in (-0.80, -0.96, -0.8025))
    comparison = compare(sampler, new, other, noise=0.04)
    assert comparison.served_fraction < 0.1
    assert comparison.other_error < 1e-3
    assert not comparison.is_stale


def test_repeated_beginnings_count_once() -> None:
    completions = [completion([5, 6]), completion([5, 7]), completion([5, 6]), completion([6])]
    assert first_occurrences(completions, length=64).tolist() == [True, True, False, True, False, False, True]


def test_equal_versions_are_undecided() -> None:
    same = torch.tensor([-1.0, -2.0])
    comparison = compare(same + 0.1, same, same, noise=0.0)
    assert (comparison.separation, comparison.is_stale) == (0.0, False)


def swap_in(toy_dir, policy: Policy, wrap=lambda sampler: sampler) -> HotSwap:
    sampler = wrap(TorchSampler(spec(policy, toy_dir, TOY_MODEL, SamplerConfig(kind="torch"))))
    return HotSwap(policy, sampler, [range(2, 20), range(20, 38)], seed=1)


def test_an_honest_sampler_is_proven_at_every_version(toy_dir) -> None:
    policy = make_policy(toy_dir, lora=LoraConfig(), scale_b=0.0)
    swap = swap_in(toy_dir, policy)
    assert swap.swap()["proof/canary_is_decided_base"] == 0  # B is zero: the policy is the base
    for version in range(1, 4):
        random_b(policy, scale=0.03, seed=version)
        policy.version = version
        metrics = swap.swap()
        for other in ("base", "previous"):
            assert metrics[f"proof/canary_is_decided_{other}"] == 1
            assert metrics[f"proof/canary_served_fraction_{other}"] == pytest.approx(1, abs=1e-3)


REHEARSED = NUM_PROBES + 1  # loads before the first update: the probes, and the policy as it starts


@pytest.mark.parametrize("lie", [liars.ServesBase, liars.ServesPrevious])
@pytest.mark.parametrize("scale", [0.03, 1e-6])
def test_a_sampler_that_begins_to_lie_is_caught_at_once_however_small_the_update(toy_dir, lie, scale) -> None:
    policy = make_policy(toy_dir, lora=LoraConfig(), scale_b=0.0)
    swap = swap_in(toy_dir, policy, liars.later(lie, num_honest_loads=REHEARSED))
    swap.swap()
    random_b(policy, scale=scale, seed=1)
    policy.version = 1
    with pytest.raises(StaleAdapterError, match=r"the sampler does not serve version 1 of the policy"):
        swap.swap()


def test_bit_identity_is_found_even_where_noise_hides_the_difference(toy_dir) -> None:
    """A tiny update: the two versions' canaries differ by less than two implementations do, but not in no bit."""
    policy = make_policy(toy_dir, lora=LoraConfig(), scale_b=0.02)
    swap = swap_in(toy_dir, policy, liars.rounds(0.03, liars.later(liars.ServesPrevious, num_honest_loads=REHEARSED)))
    swap.swap()
    policy.flat.theta_D += 1e-6
    policy.version = 1
    with pytest.raises(StaleAdapterError, match="bit-identical to that of the version before it"):
        swap.swap()


def test_a_policy_that_is_certain_is_not_accused(toy_dir) -> None:
    """Seen after 20 updates: one drawn token of probability 1 - 1e-7, the same bits under any version.

    Here a temperature near 0 makes the sampler so certain.
    """
    policy = make_policy(toy_dir, lora=LoraConfig(), scale_b=0.02)
    sampler = TorchSampler(spec(policy, toy_dir, TOY_MODEL, SamplerConfig(kind="torch")))
    swap = HotSwap(policy, sampler, [range(2, 20), range(20, 38)], sampling=SamplingParams(temperature=0.002), seed=1)
    swap.swap()
    policy.flat.theta_D += 1e-6
    policy.version = 1
    metrics = swap.swap()
    assert metrics["proof/canary_num_uncertain"] == 0
    assert metrics["proof/canary_is_decided_previous"] == 0


def test_the_canary_ends_where_the_base_is_least_certain(toy_dir) -> None:
    policy = make_policy(toy_dir, lora=LoraConfig(), scale_b=0.02)
    prompts = [range(2, 20), range(20, 38)]
    chains = [[*prompts[0], *prompts[1]], [*prompts[1], *prompts[0]]]
    entropies = {}
    with torch.no_grad(), policy.adapter_off():
        for start in range(4):  # of 36 tokens, 33 are taken
            tokens = torch.tensor([chain[start : start + 33] for chain in chains])
            log_p = policy.next_token_logits(tokens).log_softmax(-1)
            entropies[start] = float(-(log_p.exp() * log_p).sum(-1).mean())
    best = max(entropies, key=lambda start: entropies[start])
    assert canary_prompts(policy, prompts) == [tuple(chain[best : best + 33]) for chain in chains]
    assert {len(tokens) for tokens in canary_prompts(policy, prompts, longest=9)} == {9}


def test_a_step_without_rollouts_has_nothing_to_check(toy_dir) -> None:
    swap = swap_in(toy_dir, make_policy(toy_dir, lora=LoraConfig()))
    swap.swap()
    assert swap.check([]) == {"proof/rollouts_error": 0.0}
