"""Each lie that a sampler can tell ends before anything is trained, with an error that says what it looks like."""

from dataclasses import replace

import pytest
from support import liars
from support.engines import random_b, spec
from support.policies import TOY_MODEL, make_policy
from support.rollouts import completion
from support.runs import rows, toy

from benchmarks.honest import honest_run
from rlora.errors import ProofError, SamplerError
from rlora.lora.config import LoraConfig
from rlora.proof.evidence import Pooled, Sums, chance_of_copies, chance_of_count
from rlora.proof.hot_swap import HotSwap
from rlora.proof.probe import NUM_PROBES
from rlora.rollout import Sampled
from rlora.sampler.base import SamplerConfig
from rlora.sampler.build import build_sampler
from rlora.sampler.contract import check_completions
from rlora.sampler.torch_sampler import TorchSampler
from rlora.types import Group, Problem, Prompt, Rollout, SampleRequest, SamplingParams, Verdict, VerdictKind, digest_of

pytestmark = pytest.mark.unit
PROMPTS = [range(2, 20), range(20, 38), range(5, 17), range(11, 30)]
NOISE = 0.05

FROM_THE_START = {
    "serves the base": (liars.ServesBase, "the base model"),
    "serves the version before": (liars.ServesPrevious, "the version that was loaded before it"),
    "scaled by 2": (liars.scales(2.0), "scaled by 2"),
    "scaled by 0.9": (liars.scales(0.9), "scaled by 0.9"),
    "one projection dropped": (
        liars.drops("layers.1.self_attn.o_proj"),
        "layers.1.self_attn.o_proj without its update",
    ),
    "one kind dropped": (liars.drops("down_proj"), "all of down_proj without their updates"),
    "one layer dropped": (liars.drops("layers.0."), "layer 0 without its update"),
    "projections mixed up": (liars.MixesProjections, "k_proj and v_proj mixed up"),
    "layers mixed up": (liars.MixesLayers, "the opposite order"),
    "half of the requests by the base": (liars.HalfByBase, "the base model in a part of the requests"),
    "half of each group by the base": (liars.HalfOfEachGroupByBase, "the base model in a part of the requests"),
    "rollouts by another adapter": (liars.OthersRollouts, "nothing that was tried"),
    "rollouts by the version before": (liars.PreviousRollouts, "the version that was loaded before it"),
    "rollouts by the base": (liars.BaseRollouts, "the base model"),
    "draws at temperature 1.5": (liars.draws_at(1.5), "less likely than draws from it"),
    "draws at temperature 0.5": (liars.draws_at(0.5), "likelier than draws from it"),
    "reports temperature 1.3": (liars.reports_at(1.3), "changes the distribution|times the temperature"),
    "top-p 0.9": (liars.cuts_to(0.9, renormalises=True), "top-p, top-k or min-p is on"),
    "top-p 0.9, not renormalised": (liars.cuts_to(0.9, renormalises=False), "top-p, top-k or min-p is on"),
    "tokens of the version before": (liars.OldTokens, "were not drawn from a probe"),
    "ignores the seed": (liars.IgnoresSeed, "same tokens with another seed"),
    "forgets the seed": (liars.ForgetsSeed, "other tokens for the same request with the same seed"),
    "copies": (liars.CopiesOneSample, "copies of one completion"),
    "loses a prompt's first token": (liars.LosesFirstToken, "after another prompt"),
}


def swap_in(toy_dir, wrap, *, scale_b: float = 0.0, sampling: SamplingParams | None = None) -> HotSwap:
    policy = make_policy(toy_dir, lora=LoraConfig(), scale_b=scale_b)
    sampler = wrap(TorchSampler(spec(policy, toy_dir, TOY_MODEL, SamplerConfig(kind="torch"))))
    return HotSwap(policy, sampler, PROMPTS, sampling=sampling or SamplingParams(), seed=1)


@pytest.mark.parametrize("name", FROM_THE_START)
@pytest.mark.parametrize("noise", [0.0, NOISE])
def test_a_lie_from_the_start_is_named_before_anything_is_trained(toy_dir, name, noise) -> None:
    """At any learning rate: the policy is the base still, and nothing of it could be seen."""
    lie, looks = FROM_THE_START[name]
    swap = swap_in(toy_dir, liars.rounds(noise, lie) if noise else lie)
    with pytest.raises((ProofError, SamplerError), match=looks):
        swap.swap()


@pytest.mark.parametrize("noise", [0.0, 0.03, 0.08])
def test_an_honest_engine_is_rehearsed_and_the_policy_left_as_it_was(toy_dir, noise) -> None:
    swap = swap_in(toy_dir, liars.rounds(noise), scale_b=0.02)
    policy = swap._policy
    before = policy.flat.theta_D.clone()
    metrics = swap.swap()
    assert policy.flat.theta_D.equal(before)
    assert not policy.flat.grad_D.any()
    assert metrics["proof/noise"] == pytest.approx(max(noise, 1e-4), rel=0.3)
    assert metrics["proof/probe_error"] <= 1.5 * metrics["proof/noise"]


def assert_named(toy_dir, path: str, noise: float) -> None:
    """Assert that an engine which drops one projection is told which."""
    lie = liars.drops(path)
    with pytest.raises(ProofError, match=f"{path} without its update"):
        swap_in(toy_dir, liars.rounds(noise, lie) if noise else lie).swap()


def projections(toy_dir) -> list[str]:
    slots = make_policy(toy_dir, lora=LoraConfig()).flat.slots
    return [slot.name.removesuffix(".lora_B") for slot in slots if slot.name.endswith("lora_B")]


def test_every_tensor_of_a_probe_is_seen_alone(toy_dir) -> None:
    """A few stand for all, to be quick."""
    for path in projections(toy_dir)[::5]:
        assert_named(toy_dir, path, NOISE)


@pytest.mark.parametrize("path", ["model.layers.1.self_attn.v_proj", "model.layers.1.mlp.down_proj"])
def test_a_tensor_that_moves_little_is_seen_beside_one_that_moves_much(toy_dir, path) -> None:
    """They move log-probabilities by a tenth of what layer 0's do, along which the error lies first."""
    assert_named(toy_dir, path, NOISE)


@pytest.mark.long
@pytest.mark.parametrize("noise", [0.0, 0.02, NOISE])
def test_each_projection_left_out_is_named(toy_dir, noise) -> None:
    for path in projections(toy_dir):
        assert_named(toy_dir, path, noise)


@pytest.mark.long
def test_an_honest_run_of_a_thousand_steps_is_never_accused(tmp_path) -> None:
    outcome = honest_run(0.08, seed=1, num_steps=1000, learning_rate=1e-2, run_dir=tmp_path / "run")
    assert (outcome.accusation, outcome.num_steps) == (None, 1000)
    assert 0 < outcome.worst["rollouts_error"] < 4


def groups_of(swap: HotSwap, *, num_samples: int, step: int, sampling: SamplingParams | None = None) -> list[Group]:
    """Return a step's rollouts as training draws them."""
    requests = [
        SampleRequest(token_ids=tuple(prompt), num_samples=num_samples, key=("train", step, index))
        for index, prompt in enumerate(PROMPTS)
    ]
    drawn = swap._sampler.sample(requests, sampling or SamplingParams(max_tokens=16), seed=3)
    problem = Problem(id="p", question="", answer="", source="test")
    verdict = Verdict(kind=VerdictKind.WRONG, reward=0.0)
    sampled = [
        Sampled(prompt=Prompt(problem=problem, text="", token_ids=request.token_ids), completions=tuple(group))
        for request, group in zip(requests, drawn, strict=True)
    ]
    return [
        Group(
            prompt=one.prompt,
            rollouts=tuple(Rollout(completion=completion, verdict=verdict) for completion in one.completions),
        )
        for one in sampled
    ]


IN_ROLLOUTS = {
    "another adapter": liars.OthersRollouts,
    "the base": liars.BaseRollouts,
    "half of each group": liars.HalfOfEachGroupByBase,
    "hotter draws": liars.draws_at(4.0),
    "copies": liars.CopiesOneSample,
}


@pytest.mark.parametrize("name", IN_ROLLOUTS)
def test_a_lie_about_rollouts_that_begins_later_ends_the_run_within_three_steps(toy_dir, name) -> None:
    swap = swap_in(toy_dir, liars.rounds(NOISE, liars.later(IN_ROLLOUTS[name], num_honest_loads=NUM_PROBES + 1)))
    swap.swap()

    def go_on() -> None:
        for version in (1, 2, 3):
            random_b(swap._policy, scale=0.1, seed=version)
            swap._policy.version = version
            swap.swap()
            swap.check(groups_of(swap, num_samples=16, step=version))

    with pytest.raises(ProofError):
        go_on()


def test_honest_rollouts_pass_step_after_step(toy_dir) -> None:
    swap = swap_in(toy_dir, liars.rounds(0.08))
    swap.swap()
    for version in range(1, 9):
        random_b(swap._policy, scale=0.05, seed=version)
        swap._policy.version = version
        swap.swap()
        metrics = swap.check(groups_of(swap, num_samples=8, step=version))
    assert metrics["proof/rollouts_error"] < 0.16
    assert abs(metrics["proof/rollouts_surprise"]) < 5


def test_all_trained_tokens_are_checked_before_the_update(tmp_path) -> None:
    """One prompt's rollouts of a step are the base's: the trainer's own numbers show it, wherever the sample looked."""

    class OnePrompt(liars.Liar):
        def answers(self, requests, sampling, seed):
            truth = self.honest(requests, sampling, seed)
            if requests[0].key[0] == "train" and requests[0].key[1] not in ("probe", 0):
                truth[-1] = self.by_base(requests, sampling, seed)[-1]
            return truth

    size = {"problems_per_step": 6, "samples_per_problem": 64, "num_steps": 3}
    with pytest.raises(ProofError):
        run_with(OnePrompt, tmp_path, **size)
    assert len(rows(tmp_path / "run")) < 3  # as soon as that prompt is trained on


def run_with(lie, tmp_path, **changes):
    from rlora.loop import run

    return run(toy(tmp_path / "run", **changes), make_sampler=lambda spec: lie(build_sampler(spec)))


def test_a_text_that_its_tokens_do_not_say_ends_the_run(tmp_path) -> None:
    with pytest.raises(SamplerError, match="its tokens say"):
        run_with(liars.TextOfAnother, tmp_path)


REQUEST = SampleRequest(token_ids=(1, 2, 3), num_samples=1, key=("train", 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": (), "logprobs": ()}, "no tokens"),
        ({"token_ids": (4,) * 9, "logprobs": (-1.0,) * 9}, "9 tokens, and 8 are allowed"),
        ({"logprobs": (-1.0,)}, "2 tokens and 1 log-probabilities"),
        ({"token_ids": (4, -3)}, "token -3"),
        ({"token_ids": (4, 10**6)}, "token 1000000"),
        ({"logprobs": (-1.0, float("nan"))}, "token 1 has the log-probability nan"),
        ({"logprobs": (float("-inf"), -1.0)}, "token 0 has the log-probability -inf"),
        ({"logprobs": (-200.0, -1.0)}, "log-probability -200"),
        ({"logprobs": (0.5, -1.0)}, "log-probability 0.5"),
        ({"policy": 1}, "policy 1"),
        ({"prompt": digest_of((2, 3))}, "another prompt"),
    ],
)
def test_what_is_no_completion_is_the_samplers_fault(change, message) -> None:
    one = replace(completion([4, 5]), prompt=digest_of(REQUEST.token_ids))
    sampling = SamplingParams(max_tokens=8)
    check_completions([REQUEST], [[one]], sampling, num_tokens=100)
    with pytest.raises(SamplerError, match=message):
        check_completions([REQUEST], [[replace(one, **change)]], sampling, num_tokens=100)


def test_completions_are_counted() -> None:
    one = completion([4, 5])
    with pytest.raises(SamplerError, match="answered 0 prompts; 1 were asked"):
        check_completions([REQUEST], [], SamplingParams(), num_tokens=100)
    with pytest.raises(SamplerError, match="gave 2 completions"):
        check_completions([REQUEST], [[one, one]], SamplingParams(), num_tokens=100)


def test_copies_are_no_chance_unless_the_policy_is_certain() -> None:
    unlikely = replace(completion([4, 5]), logprobs=(-4.0, -4.0))
    certain = replace(completion([4, 5]), logprobs=(-0.01, -0.01))
    assert chance_of_copies([unlikely] * 16) < 1e-9
    assert chance_of_copies([certain] * 16) > 0.01
    assert chance_of_copies([replace(unlikely, token_ids=(4, index)) for index in range(16)]) == 1.0


def test_a_count_is_bounded_on_both_sides() -> None:
    assert chance_of_count(0, 30) == pytest.approx(9.4e-14, rel=0.01)
    assert chance_of_count(30, 30) == 1.0
    assert chance_of_count(90, 30) < 1e-9
    assert chance_of_count(3, 0) == 0.0


def test_sums_are_pooled_over_steps_and_one_honest_past_does_not_hide_a_lie() -> None:
    pooled = Pooled()
    for _ in range(64):
        pooled.add(Sums(deviation=0.0, variance=1.0, weight=1.0))
    for _ in range(4):
        pooled.add(Sums(deviation=-4.0, variance=1.0, weight=4.0))
    over = list(pooled.windows())
    assert [sums.z for sums in over[:2]] == pytest.approx([-4.0, -8.0])  # four steps, of four deviations each
    assert [sums.is_off for sums in over[:2]] == [False, True]
