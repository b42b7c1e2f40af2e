"""The reference sampler against the trainer and against the distribution it claims."""

import math
from dataclasses import replace

import pytest
import torch
from support.engines import random_b, spec
from support.policies import TOY_MODEL, make_policy

from rlora.errors import SamplerError
from rlora.sampler.base import SamplerConfig
from rlora.sampler.torch_sampler import TorchSampler
from rlora.train.batching import Row, stack
from rlora.types import SampleRequest, SamplingParams, StopReason

pytestmark = pytest.mark.unit
PROMPTS = [(3, 4, 5, 6), (7, 8, 9), (10, 11, 12, 13, 14)]


@pytest.fixture(scope="module")
def engine(toy_dir):
    policy = make_policy(toy_dir)
    sampler = TorchSampler(spec(policy, toy_dir, TOY_MODEL, SamplerConfig(kind="torch")))
    sampler.load([policy.snapshot()])
    return policy, sampler


def requests(num_samples: int, policy: int | None = 0) -> list[SampleRequest]:
    return [
        SampleRequest(token_ids=prompt, num_samples=num_samples, key=("t", index), policy=policy)
        for index, prompt in enumerate(PROMPTS)
    ]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_the_trainers(engine, temperature) -> None:
    policy, sampler = engine
    sampling = SamplingParams(max_tokens=12, temperature=temperature)
    for prompt, completions in zip(PROMPTS, sampler.sample(requests(5), sampling, seed=0), strict=True):
        part = stack([Row(prompt=prompt, completions=tuple(completions), advantages=(0.0,) * 5)])
        with torch.no_grad():
            scores = policy.score(part, temperature=temperature)
        assert float((scores.logprobs_N - part.sampler_logprobs_N).abs().max()) < 1e-4


def test_samples_depend_on_seed_and_key_alone(engine) -> None:
    _, sampler = engine
    sampling = SamplingParams(max_tokens=10)
    together = sampler.sample(requests(4), sampling, seed=1)
    assert [sampler.sample([one], sampling, seed=1)[0] for one in requests(4)] == together
    assert sampler.sample(requests(4), sampling, seed=2) != together
    assert len({one.token_ids for one in together[0]}) > 1


def test_the_end_token_is_kept_and_nothing_after_it(engine) -> None:
    _, sampler = engine
    completions = [one for group in sampler.sample(requests(40), SamplingParams(max_tokens=6), seed=3) for one in group]
    for one in completions:
        assert len(one.token_ids) == len(one.logprobs) <= 6
        assert one.token_ids[:-1].count(0) == 0
        assert (one.stop is StopReason.END) == (one.token_ids[-1] == 0)
        assert one.stop is StopReason.END or len(one.token_ids) == 6
        assert "<end>" not in one.text
    assert {one.stop for one in completions} == {StopReason.END, StopReason.LENGTH}


def test_draws_follow_the_probabilities(engine) -> None:
    _, sampler = engine
    one = SampleRequest(token_ids=PROMPTS[0], num_samples=4000, key=("many",))
    first = [c.token_ids[0] for c in sampler.sample([one], SamplingParams(max_tokens=1), seed=0)[0]]
    logprob = {c.token_ids[0]: c.logprobs[0] for c in sampler.sample([one], SamplingParams(max_tokens=1), seed=0)[0]}
    for token, value in logprob.items():
        p = math.exp(value)
        assert first.count(token) / 4000 == pytest.approx(p, abs=4.5 * math.sqrt(p * (1 - p) / 4000) + 2e-3)


def test_top_p_keeps_the_smallest_set_and_renormalises(engine) -> None:
    _, sampler = engine
    one = SampleRequest(token_ids=PROMPTS[0], num_samples=2000, key=("p",))
    full = {c.token_ids[0]: c.logprobs[0] for c in sampler.sample([one], SamplingParams(max_tokens=1), seed=0)[0]}
    cut = {
        c.token_ids[0]: c.logprobs[0] for c in sampler.sample([one], SamplingParams(max_tokens=1, top_p=0.5), seed=0)[0]
    }
    kept = sorted(full, key=full.get, reverse=True)[: len(cut)]
    assert set(kept) == set(cut)
    mass = sum(math.exp(full[token]) for token in kept)
    assert mass >= 0.5 > mass - math.exp(full[kept[-1]])
    assert sum(math.exp(value) for value in cut.values()) == pytest.approx(1, abs=1e-4)


def test_greedy_takes_the_most_probable_and_one_sample(engine) -> None:
    _, sampler = engine
    (greedy,) = sampler.sample(requests(1), SamplingParams(max_tokens=3, temperature=0.0), seed=0)[0]
    drawn = sampler.sample(requests(500)[:1], SamplingParams(max_tokens=1), seed=0)[0]
    best = max(drawn, key=lambda c: c.logprobs[0])
    assert greedy.token_ids[0] == best.token_ids[0]
    with pytest.raises(SamplerError, match="greedy sampling gives one completion a prompt"):
        sampler.sample(requests(2), SamplingParams(temperature=0.0), seed=0)


def test_base_requests_ignore_the_adapter_beside_others(engine) -> None:
    _policy, sampler = engine
    sampling = SamplingParams(max_tokens=5)
    base = sampler.sample(requests(2, policy=None), sampling, seed=0)
    mixed = sampler.sample([requests(2)[0], *requests(2, policy=None)], sampling, seed=0)
    assert mixed[1:] == base
    assert base[0][0].version == -1
    assert mixed[0] != base[0]


def test_several_policies_are_each_served_as_loaded_alone_beside_others_and_after_one_is_replaced(toy_dir) -> None:
    policy, sampling, snapshots = make_policy(toy_dir), SamplingParams(max_tokens=8), []
    for index in range(3):
        random_b(policy, scale=0.05, seed=index)
        snapshots.append(replace(policy.snapshot(), policy=index))
    engine_of = spec(policy, toy_dir, TOY_MODEL, SamplerConfig(kind="torch"))
    sampler = TorchSampler(replace(engine_of, num_policies=3))
    sampler.load(snapshots)
    mixed = [request for triple in zip(*(requests(3, policy=k) for k in (2, 0, 1)), strict=True) for request in triple]
    together = sampler.sample(mixed, sampling, seed=0)
    for index, snapshot in enumerate(snapshots):
        own = [group for request, group in zip(mixed, together, strict=True) if request.policy == index]
        single = TorchSampler(engine_of)
        single.load([replace(snapshot, policy=0)])
        expected = single.sample(requests(3), sampling, seed=0)
        assert own == [[replace(one, policy=index) for one in group] for group in expected]
    sampler.load([replace(snapshots[0], policy=1, version=1)])
    replaced = sampler.sample(mixed, sampling, seed=0)
    assert [group for group in replaced if group[0].policy != 1] == [g for g in together if g[0].policy != 1]
    assert [[one.logprobs for one in group] for group in replaced if group[0].policy == 1] == [
        [one.logprobs for one in group] for group in together if group[0].policy == 0
    ]


def test_stop_strings_cut_the_text_in_evaluation(engine) -> None:
    _, sampler = engine
    sampling = SamplingParams(max_tokens=12, stop=("1", "2"))
    completions = [one for group in sampler.sample(requests(20), sampling, seed=0) for one in group]
    stopped = [one for one in completions if one.stop is StopReason.STOP_STRING]
    assert stopped
    assert all("1" not in one.text and "2" not in one.text for one in completions)
