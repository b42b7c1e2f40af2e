"""What is said of an adapter: equal to what the dense matrices say, to closed forms, and told of real runs."""

import json
import math
import re
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.adapter_runs import SHAPES, dense, factors, flat, made_run, shipped
from support.runs import toy

from rlora.errors import CheckpointError
from rlora.loop import run
from rlora.lora.config import LoraConfig
from rlora.lora.peft.peft_format import load_adapter_tensors
from rlora.report.adapter import cosines, lines, study
from rlora.report.line import fit_line
from rlora.report.versions import _chosen, evenly, kind_of, layer_of, versions_in
from rlora.store.checkpoint import CheckpointFolder

unit, loop = pytest.mark.unit, pytest.mark.loop
STEPS = (0, 2, 3, 7, 11, 40)


def walked(rank: int) -> dict[int, dict[str, torch.Tensor]]:
    """Return versions that begin with a zero B and move away from it, unevenly."""
    start, end = factors(rank, 0), factors(rank, 1)
    found = {}
    for step in STEPS:
        noise, share = factors(rank, 2 + step), step / STEPS[-1]
        found[step] = {
            name: start[name] * (1 - share) + share * end[name] + 0.3 * share * noise[name]
            if name.endswith("lora_A")
            else share * (end[name] + 0.5 * noise[name])
            for name in start
        }
    return found


@pytest.fixture(scope="module", params=[1, 4], ids=["rank 1", "rank 4"])
def made(request, tmp_path_factory):
    """Return a study of made-up versions, their dense updates by step, and the shape of the update."""
    config = LoraConfig(rank=request.param, alpha=8.0)
    versions = walked(request.param)
    run_dir = made_run(tmp_path_factory.mktemp("made") / "run", versions, config, in_checkpoints=(3,))
    found = study(run_dir)
    assert found is not None
    return found, {step: dense(of, config) for step, of in versions.items()}, config


@unit
def test_norms_are_those_of_the_products(made) -> None:
    found, updates, _ = made
    assert found.steps == STEPS
    assert found.norms == pytest.approx([float(flat(of).norm()) for of in updates.values()], rel=1e-12)
    assert found.layer_norms.keys() == {"0", "1", "lm_head"}
    assert found.kind_norms.keys() == {"q_proj", "down_proj", "experts.down_proj", "lm_head"}
    for part_of, norms, shares in (
        (layer_of, found.layer_norms, found.layer_shares),
        (kind_of, found.kind_norms, found.kind_shares),
    ):
        for part, values in norms.items():
            parts = [flat({name: of[name] for name in of if part_of(name) == part}) for of in updates.values()]
            assert values == pytest.approx([float(one.norm()) for one in parts], rel=1e-12)
            assert shares[part] == pytest.approx(float(parts[-1].norm() / flat(updates[40]).norm()) ** 2, rel=1e-12)
        assert sum(shares.values()) == pytest.approx(1)


@unit
def test_cosines_between_steps_are_those_of_the_products(made) -> None:
    found, updates, _ = made
    vectors = [flat(of) for of in updates.values()]
    assert found.cosines_to_last[0] is None
    assert found.cosines_to_previous[:2] == (None, None)
    to_last = [float(torch.cosine_similarity(one, vectors[-1], 0)) for one in vectors[1:]]
    assert found.cosines_to_last[1:] == pytest.approx(to_last, rel=1e-12)
    before = [float(torch.cosine_similarity(one, other, 0)) for one, other in pairwise(vectors[1:])]
    assert found.cosines_to_previous[2:] == pytest.approx(before, rel=1e-12)
    assert found.cosines_to_last[-1] == pytest.approx(1)


@unit
def test_the_effective_rank_is_that_of_the_singular_values(made) -> None:
    found, updates, config = made
    if config.rank == 1:
        assert found.effective_ranks is None
        assert found.kind_ranks == {}
        return

    def rank_of(matrix: torch.Tensor) -> float:
        shares = np.linalg.svd(matrix.numpy(), compute_uv=False) ** 2
        shares = shares[: config.rank] / shares.sum()
        return math.exp(-sum(share * math.log(share) for share in shares if share > 0))

    def mean(of) -> float:
        squares = {name: float(one.norm() ** 2) for name, one in of.items()}
        return sum(squares[name] * rank_of(one) for name, one in of.items()) / sum(squares.values())

    assert found.effective_ranks[0] is None
    assert found.effective_ranks[1:] == pytest.approx([mean(updates[step]) for step in STEPS[1:]], rel=1e-9)
    of_experts = {name: one for name, one in updates[40].items() if ".experts." in name}
    assert found.kind_ranks["experts.down_proj"] == pytest.approx(mean(of_experts), rel=1e-9)


@unit
def test_the_line_is_that_of_the_dense_vectors(made) -> None:
    found, updates, _ = made
    vectors = np.stack([flat(of).numpy() for of in updates.values()])
    step = np.array(STEPS, dtype=float)
    seen = [1, 2]  # steps 2 and 3 of 40: 15 % are 6
    direction = np.linalg.svd(vectors[seen], full_matrices=False)[2][0]
    direction *= np.sign(vectors[2] @ direction)
    along = vectors @ direction
    slope, intercept = np.polyfit(step[[0, *seen]], along[[0, *seen]], 1)
    line = found.line
    assert line.seen == (2, 3)
    assert line.steps == (7, 11, 40)
    assert line.along == pytest.approx(along, rel=1e-9, abs=1e-12)
    assert line.fitted == pytest.approx(intercept + slope * step, rel=1e-9, abs=1e-12)
    beside = np.linalg.norm(vectors - np.outer(along, direction), axis=1)
    assert line.beside == pytest.approx(beside, rel=1e-6, abs=1e-7)
    for index, at in enumerate((3, 4, 5)):
        predicted, size = (intercept + slope * step[at]) * direction, np.linalg.norm(vectors[at])
        assert line.errors[index] == pytest.approx(np.linalg.norm(predicted - vectors[at]) / size, rel=1e-9)
        cosine = predicted @ vectors[at] / size / np.linalg.norm(predicted)
        assert line.cosines[index] == pytest.approx(cosine, rel=1e-9)
        still = np.linalg.norm(vectors[2] - vectors[at]) / size
        assert line.errors_if_still[index] == pytest.approx(still, rel=1e-9)
    sizes = np.linalg.svd(vectors, compute_uv=False) ** 2
    assert line.share == pytest.approx(sizes[0] / sizes.sum(), rel=1e-9)


def straight(
    rank: int = 1, *, steps=range(0, 21), growth=lambda step: 0.1 * step
) -> dict[int, dict[str, torch.Tensor]]:
    """Return versions that go straight on: B grows, A stays."""
    end = factors(rank, 5)
    return {
        step: {name: value * (growth(step) if name.endswith("lora_B") else 1) for name, value in end.items()}
        for step in steps
    }


@unit
def test_a_straight_and_even_path_is_told_without_error(tmp_path) -> None:
    found = study(made_run(tmp_path / "run", straight()))
    line = found.line
    assert line.seen == (1, 2, 3)
    assert line.share == pytest.approx(1)
    assert line.errors == pytest.approx([0] * 17, abs=1e-6)
    assert line.cosines == pytest.approx([1] * 17)
    assert line.errors_if_still == pytest.approx([1 - 3 / step for step in range(4, 21)], abs=1e-6)
    a, b = (
        torch.cat([one.flatten() for name, one in factors(1, 5).items() if name == f"lm_head.lora_{k}"]) for k in "AB"
    )
    assert found.layer_norms["lm_head"][10] == pytest.approx(
        float(32 * a.double().norm() * b.double().norm()), rel=1e-6
    )


@unit
def test_a_straight_path_that_slows_down_is_foretold_too_far(tmp_path) -> None:
    line = study(made_run(tmp_path / "run", straight(growth=lambda step: min(step, 10) / 10))).line
    assert line.share == pytest.approx(1)
    assert line.cosines[-1] == pytest.approx(1)
    assert line.errors[-1] == pytest.approx(1, abs=1e-6)  # twice as far as it is
    assert line.errors_if_still[-1] == pytest.approx(0.7, abs=1e-6)


@unit
def test_a_path_that_turns_back_is_foretold_the_wrong_way(tmp_path) -> None:
    line = study(made_run(tmp_path / "run", straight(growth=lambda step: step if step <= 3 else -step))).line
    assert line.cosines == pytest.approx([-1] * 17)
    assert line.errors == pytest.approx([2] * 17, abs=1e-6)
    assert line.errors_if_still[-1] == pytest.approx(23 / 20, abs=1e-6)


@unit
def test_a_path_that_does_not_begin_at_the_base_is_measured_from_its_start(tmp_path) -> None:
    versions = straight(growth=lambda step: 5 + step, steps=range(100, 121))
    found = study(made_run(tmp_path / "run", versions))
    assert found.norms[0] > 0
    assert found.line.seen == (101, 102, 103)
    assert found.line.errors == pytest.approx([0] * 17, abs=1e-5)
    assert found.line.along[0] == pytest.approx(0, abs=1e-9)


@unit
@pytest.mark.parametrize(
    ("steps", "growth", "reason"),
    [
        ((0, 10, 20), lambda step: step, r"of the first 15% of the steps \(up to step 3\) there are 0 versions"),
        ((0, 2, 20), lambda step: step, "there are 1 versions beside the start, and a line needs 2"),
        ((4,), lambda step: step, r"\(up to step 4\) there are 0 versions"),
        (range(21), lambda step: max(0, step - 3), "nothing was learned in the first 15% of the steps"),
        (range(21), lambda step: step % 20, "a later version is the start again"),
    ],
)
def test_where_there_is_no_line_it_is_said_why(tmp_path, steps, growth, reason) -> None:
    found = study(made_run(tmp_path / "run", straight(steps=steps, growth=growth)))
    assert found.line is None
    assert re.search(reason, found.no_line)


@unit
def test_equal_singular_values_use_all_ranks_and_one_uses_one(tmp_path) -> None:
    a, b = torch.eye(3, 5), torch.eye(6, 3)
    for sizes, expected in (((1, 1, 1), 3), ((1, 0, 0), 1), ((2, 2, 0), 2), ((1, 1e-9, 0), 1)):
        of = {"layers.0.x.lora_A": a, "layers.0.x.lora_B": b * torch.tensor(sizes)}
        found = study(made_run(tmp_path / str(sizes), {0: of}, LoraConfig(rank=3)))
        assert found.effective_ranks == (pytest.approx(expected),)
        assert found.kind_ranks == {"x": pytest.approx(expected)}


@unit
def test_an_expert_of_another_rank_has_a_scale_of_its_own(tmp_path) -> None:
    config = LoraConfig(rank=4, alpha=8.0)
    one, own = factors(4, 0), factors(1, 1)
    mixed = {name: own[name] if ".experts." in name else one[name] for name in one}
    found = study(made_run(tmp_path / "run", {3: mixed}, config))
    assert found.norms == pytest.approx([float(flat(dense(mixed, config)).norm())], rel=1e-12)


@unit
def test_pissa_is_measured_from_its_start(tmp_path) -> None:
    config = LoraConfig(rank=2, alpha=4.0, variant="pissa")
    start, end = factors(2, 0), factors(2, 1)
    found = study(made_run(tmp_path / "run", {0: start, 8: end}, config))
    first, last = dense(start, config), dense(end, config)
    moved = {name: last[name] - first[name] for name in first}
    assert found.norms == pytest.approx([0, float(flat(moved).norm())], abs=1e-6)
    assert 1 < found.effective_ranks[-1] <= 4


@unit
def test_a_policy_of_all_weights_has_no_study(tmp_path) -> None:
    weights = {"model.embed.weight": torch.randn(4, 3)}
    assert study(made_run(tmp_path / "run", {0: weights, 2: weights})) is None
    assert study(tmp_path / "nothing") is None


@unit
def test_a_run_with_its_adapter_alone_is_studied(tmp_path) -> None:
    of, config = factors(2, 0), LoraConfig(rank=2)
    found = study(shipped(tmp_path / "run", of, config, version=17))
    assert found.steps == (17,)
    assert found.norms == pytest.approx([float(flat(dense(of, config)).norm())], rel=1e-6)
    assert found.cosines_to_previous == (None,)
    assert found.layer_norms.keys() == {"0", "1", "lm_head"}
    assert "a line needs 2" in found.no_line


@unit
def test_at_most_forty_versions_are_read_evenly(tmp_path) -> None:
    assert evenly(range(5), 40) == [0, 1, 2, 3, 4]
    assert evenly(range(1001), 5) == [0, 250, 500, 750, 1000]
    assert evenly([0, 1, 2, 3, 1000], 3) == [0, 3, 1000]
    versions = versions_in(made_run(tmp_path / "run", straight(steps=range(200))))
    assert 37 <= len(versions.steps) <= 40
    assert (versions.steps[0], versions.steps[-1]) == (0, 199)


@unit
def test_fewer_are_read_of_a_large_policy_and_enough_of_its_beginning() -> None:
    assert _chosen(range(301), 305_280, 1) == sorted({*evenly(range(301), 37), 0, 15, 30, 45})
    steps = _chosen(range(301), 84_000_000, 32)  # rank 32 on eight billion weights
    assert steps == sorted({*evenly(range(301), 8), 0, 15, 30, 45})
    assert len([step for step in steps if 0 < step <= 45]) >= 2


@unit
def test_a_version_that_cannot_be_read_is_named_and_left_out(tmp_path) -> None:
    run_dir = made_run(tmp_path / "run", straight())
    (run_dir / "trajectory" / "step-000005.safetensors").write_bytes(b"no tensors")
    save_file({"theta_D": torch.zeros(3)}, run_dir / "trajectory" / "step-000006.safetensors")
    found = study(run_dir)
    assert 5 not in found.steps
    assert 6 not in found.steps
    assert len(found.steps) == 19
    assert "step-000005.safetensors" in found.left_out[0]
    assert "holds (3,) numbers" in found.left_out[1]
    assert "2 of its versions could not be read" in lines(found)[-1]


@unit
def test_numbers_that_are_not_finite_are_an_error(tmp_path) -> None:
    versions = straight()
    versions[4]["lm_head.lora_B"][0] = float("nan")
    with pytest.raises(CheckpointError, match="numbers that are not finite"):
        study(made_run(tmp_path / "run", versions))
    run_dir = made_run(tmp_path / "other", {0: factors(1, 0)})
    (run_dir / "checkpoints" / "step-000000" / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no version of its policy that can be read"):
        study(run_dir)


@unit
def test_a_study_is_plain_numbers_of_four_digits(made) -> None:
    found, _, _ = made
    stored = found.to_json()
    assert json.loads(json.dumps(stored, allow_nan=False)) == stored
    assert stored["norms"][1] == float(f"{found.norms[1]:.4g}")
    assert stored["cosines_to_previous"][0] is None
    assert stored["line"]["seen"] == [2, 3]
    assert stored.keys() == {*found.__slots__}


@unit
def test_policies_are_compared_whatever_their_ranks(tmp_path) -> None:
    policies = {"a": factors(1, 0), "b": factors(4, 1), "minus a": None, "zero": None}
    policies["minus a"] = {name: -one if name.endswith("_B") else one for name, one in policies["a"].items()}
    policies["zero"] = {name: 0 * one for name, one in policies["a"].items()}
    configs = {name: LoraConfig(rank=4 if name == "b" else 1, alpha=16.0) for name in policies}
    run_dirs = [shipped(tmp_path / name, of, configs[name]) for name, of in policies.items()]
    table = cosines([*run_dirs, tmp_path / "nothing"])
    a, b = (flat(dense(policies[name], configs[name])) for name in "ab")
    between = pytest.approx(float(torch.cosine_similarity(a, b, 0)), rel=1e-6)
    assert table[0] == [pytest.approx(1), between, pytest.approx(-1), None, None]
    assert table[1][0] == between
    assert table[3] == table[4] == [None] * 5


@unit
def test_matrices_that_one_policy_leaves_alone_count_as_unchanged(tmp_path) -> None:
    whole = factors(1, 0)
    part = {name: one for name, one in whole.items() if "q_proj" in name}
    table = cosines([shipped(tmp_path / "whole", whole), shipped(tmp_path / "part", part)])
    share = flat(dense(part, LoraConfig())).norm() / flat(dense(whole, LoraConfig())).norm()
    assert table[0][1] == pytest.approx(float(share), rel=1e-6)


@unit
def test_policies_of_other_bases_are_not_compared(tmp_path) -> None:
    of = factors(1, 0)
    runs = [shipped(tmp_path / name, of, base=name) for name in ("one", "other")]
    assert cosines(runs) == [[pytest.approx(1), None], [None, pytest.approx(1)]]
    wider = {name: torch.randn(2 * len(one), 1) if name.endswith("_B") else one for name, one in of.items()}
    assert cosines([shipped(tmp_path / "a", of), shipped(tmp_path / "b", wider)])[0][1] is None


@unit
def test_a_study_is_told_in_three_to_five_sentences(made) -> None:
    found, _, config = made
    said = lines(found)
    assert len(said) == (3 if config.rank == 1 else 4)
    assert said[0].startswith(f"After 40 steps the update of rank {config.rank} has the norm {found.norms[-1]:.3g}: ")
    assert (
        f"A line through the versions up to step 3 predicts it with an error of {found.line.errors[-1]:.0%}" in said[-1]
    )
    if config.rank > 1:
        assert said[1] == f"It uses {found.effective_ranks[-1]:.2g} of its 4 ranks."


@unit
def test_an_update_of_zero_is_said(tmp_path) -> None:
    found = study(made_run(tmp_path / "run", straight(growth=lambda step: 0.0)))
    assert lines(found) == ["The policy of step 20 is its base still: the update is zero."]
    assert found.layer_shares["0"] == 0


@unit
def test_a_line_of_many_directions_holds_little_of_each() -> None:
    products = torch.diag(torch.tensor([0.0, *[1.0] * 20], dtype=torch.float64))
    line = fit_line(range(21), products)
    assert line.share == pytest.approx(1 / 20)
    assert line.cosines == pytest.approx([0] * 17)


@loop
@pytest.mark.parametrize("rank", [1, 4])
def test_a_real_run_is_studied(tmp_path, rank) -> None:
    config = LoraConfig(rank=rank)
    run_dir = run(toy(tmp_path / "run", problems_per_step=4, samples_per_problem=16, num_steps=14, lora=config))
    began = time.perf_counter()
    found = study(run_dir)
    assert time.perf_counter() - began < 1
    assert found.steps == tuple(range(15))
    assert found.norms[0] == 0
    tensors = CheckpointFolder(run_dir / "checkpoints").load(14).tensors()
    update = dense(tensors, config)
    assert found.norms[-1] == pytest.approx(float(flat(update).norm()), rel=1e-9)
    served = load_adapter_tensors(run_dir / "adapter", config, {name: one.shape for name, one in tensors.items()})
    assert all(torch.equal(served[name], one) for name, one in tensors.items())
    assert cosines([run_dir, run_dir])[0][1] == pytest.approx(1)
    assert found.line is not None or found.no_line
    assert (found.effective_ranks is None) == (rank == 1)
    assert rank == 1 or 1 <= found.effective_ranks[-1] <= rank


@unit
def test_every_kind_of_matrix_has_a_name() -> None:
    assert {kind_of(path) for path in SHAPES} == {"q_proj", "down_proj", "experts.down_proj", "lm_head"}
    assert [layer_of(path) for path in SHAPES] == ["0", "0", "1", "1", "1", "lm_head"]
