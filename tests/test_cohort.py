"""Cohorts on the toy model: each member is its own run, bit for bit, and has its own fate."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support.cohorts import DropsOfOne, OneForAll, SwapsTwo, cohort_of, later, member, unequal
from support.engines import Around
from support.runs import assert_same_run, rows, without_clock

from rlora.cohort.cohort import Cohort
from rlora.cohort.fates import Rules, fate_of
from rlora.cohort.table import table_of
from rlora.errors import ConfigError, ProofError, RunDirError, SamplerError
from rlora.evaluation.held_out import EvaluationConfig
from rlora.loop import run
from rlora.lora.config import LoraConfig
from rlora.sampler.base import Sampler
from rlora.sampler.build import build_sampler
from rlora.store.checkpoint import CheckpointFolder
from rlora.types import SampleRequest, SamplingParams

pytestmark = pytest.mark.loop


def own_run(config, folder: Path) -> Path:
    return run(replace(config, run_dir=str(folder / Path(config.run_dir).name)))


class Counts(Around):
    """Counts the calls for training and their rows."""

    def __init__(self, sampler: Sampler):
        self._sampler, self.calls = sampler, list[list[SampleRequest]]()

    def load(self, snapshots: Sequence) -> None:
        self._sampler.load(snapshots)

    def sample(self, requests: Sequence[SampleRequest], sampling: SamplingParams, *, seed: int):
        self.calls.append(list(requests))
        return self._sampler.sample(requests, sampling, seed=seed)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Cohort, Counts]:
    folder, made = tmp_path_factory.mktemp("cohort"), []

    def counted(spec) -> Sampler:
        made.append(Counts(build_sampler(spec)))
        return made[-1]

    cohort = cohort_of(folder / "c", unequal(folder), make_sampler=counted)
    cohort.run()
    (counts,) = made  # one engine for all
    return cohort, counts


def test_unequal_members_equal_runs_of_their_own_bit_for_bit(finished, tmp_path) -> None:
    cohort, _ = finished
    for each in cohort.members:
        assert_same_run(Path(each.config.run_dir), own_run(each.config, tmp_path))
    trained = [sum(not row["optimizer/is_empty_batch"] for row in rows(Path(m.config.run_dir))) for m in cohort.members]
    assert min(trained) >= 1  # equal by having done something
    adapters = cohort.folder.glob("members/*/adapter/adapter_model.safetensors")
    assert len({path.read_bytes() for path in adapters}) == 4


def test_all_members_sample_in_one_call(finished) -> None:
    cohort, counts = finished
    steps = [call for call in counts.calls if call[0].key[:2] == ("train", 0)]
    assert len(steps) == 1
    assert {request.policy for request in steps[0]} == {0, 1, 2, 3}
    assert {request.seed for request in steps[0]} == {0, 1, 2}
    assert cohort.members[1].config.data.seed == 0  # problems are the same for all, so scores are paired
    questions = [[r.key[-1] for r in steps[0] if r.policy == number][:4] for number in range(4)]
    assert questions[1:] == questions[:1] * 3


def test_what_members_ask_the_base_alike_is_drawn_once(finished) -> None:
    _, counts = finished
    asked = [request for call in counts.calls for request in call if request.policy is None]
    scored = [request for request in asked if request.key[0] == "evaluate"]
    assert len(scored) == 2 * len(set(scored))  # greedily and drawn
    assert {request.seed for request in scored} == {0, 1, 2}  # two of the four have one seed


def test_the_folder_holds_what_was_found_out(finished) -> None:
    cohort, _ = finished
    names = {path.name for path in cohort.folder.iterdir()}
    assert names >= {"members", "cohort.json", "table.json", "table.txt", "plot.png", "plot.svg", "adapter", "log.txt"}
    table = json.loads((cohort.folder / "table.json").read_text())
    assert {row["name"] for row in table["members"]} == {member.name for member in cohort.members}
    scores = [row["score"] for row in table["members"]]
    assert scores == sorted(scores, reverse=True)
    best = cohort.folder / "members" / table["members"][0]["name"] / "adapter" / "adapter_model.safetensors"
    assert (cohort.folder / "adapter" / "adapter_model.safetensors").read_bytes() == best.read_bytes()
    assert (cohort.folder / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_a_finished_cohort_is_left_as_it_is(finished) -> None:
    cohort, _ = finished
    before = {path: path.read_bytes() for path in cohort.folder.glob("members/*/metrics.jsonl")}
    again = Cohort(cohort.folder)
    again.add_all([member.config for member in cohort.members], [member.name for member in cohort.members])
    assert again.run().rows == table_of(cohort.folder).rows
    assert {path: path.read_bytes() for path in cohort.folder.glob("members/*/metrics.jsonl")} == before


@pytest.mark.parametrize("lie", [SwapsTwo, OneForAll, DropsOfOne])
@pytest.mark.parametrize("shapes", ["of unequal shape", "of one shape"])
def test_an_engine_that_mixes_members_up_from_the_start_is_refused_before_step_0(lie, shapes, tmp_path) -> None:
    alike = [member(tmp_path, rate=rate) for rate in (3e-3, 1e-2, 3e-2)]
    configs = alike if shapes == "of one shape" else unequal(tmp_path)
    cohort = cohort_of(tmp_path / "c", configs, make_sampler=lambda spec: lie(build_sampler(spec)))
    with pytest.raises(ProofError):
        cohort.run()
    assert not list(tmp_path.glob("c/members/*/rollouts/*.jsonl"))


@pytest.mark.parametrize("lie", [SwapsTwo, OneForAll])
def test_an_engine_that_mixes_members_up_later_is_refused_within_a_step(lie, tmp_path) -> None:
    configs = [member(tmp_path, rate=rate, samples_per_problem=64) for rate in (3e-2, 1e-2)]
    turning = later(lie, from_version=2)
    cohort = cohort_of(tmp_path / "c", configs, make_sampler=lambda spec: turning(build_sampler(spec)))
    with pytest.raises(ProofError, match="another policy"):
        cohort.run()


def test_a_member_whose_numbers_are_not_finite_is_frozen_and_the_others_do_not_notice(tmp_path) -> None:
    configs = [member(tmp_path, samples_per_problem=64), member(tmp_path, rate=1e30, samples_per_problem=64)]
    table = cohort_of(tmp_path / "c", configs).run()
    (good, bad) = (tmp_path / "c" / "members" / name for name in ("lr0.01", "lr1e+30"))
    fate = fate_of(bad)
    assert fate is not None
    assert fate.kind == "frozen"
    assert "not numbers" in fate.why
    assert {row["name"]: row["state"] for row in table.rows} == {"lr0.01": "finished", "lr1e+30": "frozen"}
    alone = replace(configs[0], run_dir=str(good), data=replace(configs[0].data, seed=0))
    assert_same_run(good, own_run(alone, tmp_path))
    before = {path: path.read_bytes() for path in bad.rglob("*") if path.is_file()}
    cohort_of(tmp_path / "c", configs).run()  # it stays where it is
    assert {path: path.read_bytes() for path in bad.rglob("*") if path.is_file()} == before


def nothing_from(step: int):
    """Return a reward that pays some texts before a step and nothing from then on, as for a policy that collapsed."""
    count = iter(range(10**9))

    def reward(completion, problem) -> float:
        return float(len(completion) % 2) if next(count) < step * 6 * 32 else 0.0

    return reward


def test_a_member_that_earns_nothing_any_more_is_frozen_at_its_best_version(tmp_path) -> None:
    config = member(tmp_path, num_steps=9, evaluation=EvaluationConfig(num_problems=4))
    cohort = cohort_of(tmp_path / "c", [config], rules=Rules(max_zero_steps=3), reward=nothing_from(3))
    cohort.run()
    run_dir = tmp_path / "c" / "members" / "only"
    fate = fate_of(run_dir)
    assert fate is not None
    assert (fate.kind, fate.step) == ("frozen", 6)
    rewards = [row["reward/mean"] for row in rows(run_dir)]
    assert fate.version == rewards.index(max(rewards))
    best = CheckpointFolder(run_dir / "peak").newest()
    assert best is not None
    assert json.loads((run_dir / "adapter" / "rlora.json").read_text())["version"] == best.step == fate.version


@pytest.mark.parametrize(
    ("options", "rules", "reward"),
    [
        ({"rate": 1e30, "samples_per_problem": 64}, Rules(), None),
        ({"num_steps": 9}, Rules(max_zero_steps=3), nothing_from(3)),
    ],
    ids=["not finite", "no reward"],
)
def test_a_member_that_was_killed_as_it_was_frozen_loses_nothing(tmp_path, options, rules, reward) -> None:
    """Its last steps are newer than its last checkpoint, and were once dropped for good."""
    config = member(tmp_path, evaluation=EvaluationConfig(num_problems=4), **options)
    cohort_of(tmp_path / "c", [config], rules=rules, reward=reward).run()
    run_dir = tmp_path / "c" / "members" / "only"
    before = {path: path.read_bytes() for path in [run_dir / "fate.json", *run_dir.glob("rollouts/*")]}
    steps = [without_clock(row) for row in rows(run_dir)]
    (run_dir / "summary.json").unlink()  # the fate was written, and the scores were not
    cohort_of(tmp_path / "c", [config], rules=rules, reward=reward).run()
    assert (run_dir / "summary.json").is_file()
    assert before == {path: path.read_bytes() for path in [run_dir / "fate.json", *run_dir.glob("rollouts/*")]}
    assert steps == [without_clock(row) for row in rows(run_dir)]


def test_a_frozen_member_is_tried_again_at_a_lower_rate(tmp_path) -> None:
    configs = [member(tmp_path, rate=1e30, samples_per_problem=64)]
    cohort_of(tmp_path / "c", configs, rules=Rules(rollback=1e-32)).run()
    again = tmp_path / "c" / "members" / "only+back1"
    assert fate_of(again) is None
    assert json.loads((again / "config.json").read_text())["optimizer"]["learning_rate"] == pytest.approx(1e-2)
    assert json.loads((again / "run.json").read_text())["parent"].startswith(str(tmp_path / "c" / "members" / "only"))
    assert (again / "summary.json").is_file()


def test_halving_stops_the_worse_half_and_gives_its_problems_to_the_rest(tmp_path) -> None:
    evaluation = EvaluationConfig(num_problems=0, num_problems_during_training=8)
    configs = [
        member(tmp_path, rate=rate, samples_per_problem=64, evaluation=evaluation) for rate in (1e-30, 1e-2, 2e-2, 3e-2)
    ]
    table = cohort_of(tmp_path / "c", configs, rules=Rules(halving=(2, 3))).run()
    assert "stopped early" in (tmp_path / "c" / "plot.svg").read_text()
    halvings = json.loads((tmp_path / "c" / "halvings.json").read_text())
    assert [len(halvings[step]["stopped"]) for step in ("2", "3")] == [2, 1]
    assert [halvings[step]["share"] for step in ("2", "3")] == [2.0, 4.0]
    for step in ("2", "3"):
        scores, stopped = halvings[step]["scores"], halvings[step]["stopped"]
        going = [score for name, score in scores.items() if name not in stopped]
        assert max(scores[name] for name in stopped) <= min(going)
    (winner,) = (row for row in table.rows if row["state"] == "finished")
    counts = [row["rollout/num_completions"] for row in rows(tmp_path / "c" / "members" / winner["name"])]
    assert counts == [6 * 64, 6 * 64, 12 * 64, 24 * 64]
    assert sorted(row["step"] for row in table.rows) == [2, 2, 3, 4]
    assert all(row["why"] for row in table.rows if row["state"] == "stopped")


def test_a_member_can_be_added_and_removed_while_others_train_and_equals_its_own_run(tmp_path) -> None:
    first, second, third = (member(tmp_path, rate=rate) for rate in (1e-2, 2e-2, 3e-2))

    def on_step(name: str, values: Mapping[str, float]) -> None:
        if name == "first" and values["step"] == 1:
            cohort.add(third, name="third")
            cohort.remove("second")

    cohort = Cohort(tmp_path / "c", seats=3, on_step=on_step)
    cohort.add(first, name="first")
    cohort.add(second, name="second")
    table = cohort.run()
    assert {row["name"]: row["state"] for row in table.rows} == {
        "first": "finished",
        "second": "unfinished",
        "third": "finished",
    }
    for config, name in ((first, "first"), (third, "third")):
        config = replace(config, run_dir=str(tmp_path / name), data=replace(config.data, seed=0))
        assert_same_run(tmp_path / "c" / "members" / name, run(config))
    assert 1 <= len(rows(tmp_path / "c" / "members" / "second")) < 4


def test_a_member_for_whom_there_is_no_place_is_refused_and_the_others_go_on(tmp_path) -> None:
    said = []

    def on_step(name: str, values: Mapping[str, float]) -> None:
        if values["step"] == 0:
            for config in (member(tmp_path, lora=LoraConfig(rank=4)), member(tmp_path, rate=3e-2)):
                with pytest.raises(ConfigError) as error:
                    cohort.add(config, name="second")
                said.append(str(error.value))

    cohort = Cohort(tmp_path / "c", on_step=on_step, seats=1)
    cohort.add(member(tmp_path), name="first")
    table = cohort.run()
    assert [(row["name"], row["state"]) for row in table.rows] == [("first", "finished")]
    assert "was started for rank 1 on all layers, and cannot serve rank 4" in said[0]
    assert "1 seats, and all are taken" in said[1]
    assert len(rows(tmp_path / "c" / "members" / "first")) == 4


def test_a_cohort_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path) -> None:
    class Stop(Exception):
        pass

    def stop(name: str, values: Mapping[str, float]) -> None:
        if values["step"] == 1 and name.endswith("s1"):
            raise Stop

    configs = [member(tmp_path, seed=seed) for seed in (0, 1)]
    with pytest.raises(Stop):
        cohort_of(tmp_path / "c", configs, on_step=stop).run()
    cohort_of(tmp_path / "c", configs).run()
    cohort_of(tmp_path / "straight", configs).run()
    for name in ("s0", "s1"):
        assert_same_run(tmp_path / "c" / "members" / name, tmp_path / "straight" / "members" / name)


def test_a_cohort_of_one_is_a_run(tmp_path) -> None:
    config = member(tmp_path)
    cohort_of(tmp_path / "c", [config]).run()
    own = run(replace(config, run_dir=str(tmp_path / "own"), data=replace(config.data, seed=0)))
    assert_same_run(tmp_path / "c" / "members" / "only", own)
    assert [without_clock(row) for row in rows(own)] == [
        without_clock(row) for row in rows(run(replace(config, run_dir=str(tmp_path / "plain"))))
    ]


def test_what_cannot_be_a_cohort_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no members"):
        Cohort(tmp_path / "c").run()
    cohort = Cohort(tmp_path / "c")
    with pytest.raises(ConfigError, match="--method full is a run of its own"):
        cohort.add(member(tmp_path, method="full"))
    with pytest.raises(ConfigError, match="halving 3 2"):
        Cohort(tmp_path / "c", rules=Rules(halving=(3, 2))).add(member(tmp_path))
    with pytest.raises(ConfigError, match="kl-coefficient above 0"):
        Cohort(tmp_path / "c", rules=Rules(max_kl=1.0)).add(member(tmp_path))
    cohort = Cohort(tmp_path / "c", seats=1)
    cohort.add_all([member(tmp_path, seed=seed) for seed in (0, 1)], [None, None])
    with pytest.raises(ConfigError, match="1 seats, and all are taken"):
        cohort.run()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(RunDirError, match="is not a cohort"):
        cohort_of(tmp_path / "run", [member(tmp_path)]).run()


def test_other_rules_than_those_it_began_with_are_refused(tmp_path) -> None:
    config = member(tmp_path, num_steps=1)
    cohort_of(tmp_path / "c", [config]).run()
    with pytest.raises(RunDirError, match="a cohort of other rules"):
        cohort_of(tmp_path / "c", [config], rules=Rules(halving=(1,))).run()


def test_a_sampler_that_answers_too_few_is_named_as_in_a_run_of_its_own(tmp_path) -> None:
    class Short(Around):
        def __init__(self, sampler: Sampler):
            self._sampler = sampler

        def load(self, snapshots: Sequence) -> None:
            self._sampler.load(snapshots)

        def sample(self, requests, sampling, *, seed):
            return self._sampler.sample(requests, sampling, seed=seed)[:-1]

    configs = [member(tmp_path, seed=seed) for seed in (0, 1)]
    with pytest.raises(SamplerError, match="were asked"):
        cohort_of(tmp_path / "c", configs, make_sampler=lambda spec: Short(build_sampler(spec))).run()
