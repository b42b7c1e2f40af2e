"""The trackers that come with rlora, with their real packages: the same run goes on in them, and nothing is doubled."""

import json
from dataclasses import replace

import pytest
from support.runs import SIZE, rows, stopped, toy

from rlora.errors import MissingDependencyError
from rlora.loop import run
from rlora.store.checkpoint import CheckpointConfig
from rlora.store.run_dir import read_json
from rlora.tracking import MetricsLog, TrackingConfig
from rlora.tracking.tracker import check_trackers

pytestmark = [pytest.mark.loop, pytest.mark.filterwarnings("ignore")]
TRACKING = TrackingConfig(tracker="tensorboard, trackio", wandb="offline", samples=3, policy=True)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A run that was stopped in its fourth step, did the third again, and then went on to its end with the fifth."""
    folder = tmp_path_factory.mktemp("trackers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))  # which is read where trackio is imported
        config = toy(folder / "run", tracking=TRACKING, checkpoint=CheckpointConfig(every=2), **SIZE)
        stopped(config, after=3)
        assert [row["step"] for row in rows(folder / "run")] == [0, 1, 2]
        yield run(config)


@pytest.fixture(scope="module")
def scalars(resumed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(resumed / "tensorboard"))
    found.Reload()
    return found


@pytest.fixture(scope="module")
def trackio_rows(resumed):
    from trackio.sqlite_storage import SQLiteStorage

    assert SQLiteStorage.get_runs("rlora") == [f"run-{read_json(resumed / 'run.json')['id'][:6]}"]
    return SQLiteStorage.get_logs("rlora", SQLiteStorage.get_runs("rlora")[0])


def test_tensorboard_has_each_step_of_a_resumed_run_once_and_its_scores(resumed, scalars) -> None:
    assert len(list((resumed / "tensorboard").iterdir())) == 2
    found = scalars.Scalars("reward/mean")
    assert [event.step for event in found] == [0, 1, 2, 3, 4]
    assert [event.value for event in found] == pytest.approx([row["reward/mean"] for row in rows(resumed)])
    assert set(rows(resumed)[0]) <= set(scalars.Tags()["scalars"])
    (score,) = scalars.Scalars("final/greedy/policy")
    assert (score.step, score.value) == (5, pytest.approx(read_json(resumed / "summary.json")["policy"]["accuracy"]))


def test_trackio_has_each_step_of_a_resumed_run_once_and_its_scores(resumed, trackio_rows) -> None:
    steps = [row for row in trackio_rows if "reward/mean" in row]
    assert [row["step"] for row in steps] == [0, 1, 2, 3, 4]
    assert [row["reward/mean"] for row in steps] == [row["reward/mean"] for row in rows(resumed)]
    (scores,) = [row for row in trackio_rows if "final/greedy/policy" in row]
    assert scores["step"] == 5
    assert scores["final/greedy/policy"] == read_json(resumed / "summary.json")["policy"]["accuracy"]


def test_trackio_shows_rollouts_of_steps_that_stay(resumed, trackio_rows) -> None:
    (shown,) = [row for row in trackio_rows if "rollouts" in row]
    assert shown["step"] == 0
    (one, *_) = shown["rollouts"]["_value"]
    assert {"problem", "prompt", "completion", "reward", "verdict", "extracted"} == set(one)


def test_wandb_offline_goes_on_with_the_same_run_and_has_rollouts_and_the_policy(resumed) -> None:
    run_id = read_json(resumed / "run.json")["id"]
    assert len(list(resumed.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))) == 2
    (table,) = resumed.glob("wandb/offline-run-*/files/media/table/rollouts_*.table.json")
    found = json.loads(table.read_text())
    assert found["columns"] == ["problem", "prompt", "completion", "reward", "verdict", "extracted"]
    written = [json.loads(line) for line in (resumed / "rollouts" / "step-000000.jsonl").read_text().splitlines()]
    assert len(found["data"]) == 3
    assert len({row[0] for row in found["data"]}) == 3  # of three problems
    for row in found["data"]:
        assert any(row[2] == rollout["text"] and row[3] == rollout["reward"] for rollout in written)
    newest = max(resumed.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    assert newest.read_bytes().count(f"policy-{run_id}".encode()) >= 2


def test_a_tracker_by_its_name_runs_beside_others_and_wandb_by_its_name_is_online() -> None:
    assert TRACKING.names == ("wandb", "tensorboard", "trackio")
    assert TrackingConfig(tracker="wandb").names == ("wandb",)
    assert TrackingConfig(tracker="wandb").wandb_mode == "online"
    assert TrackingConfig(tracker="wandb,trackio", wandb="offline").names == ("wandb", "trackio")
    assert TrackingConfig(tracker="wandb,trackio", wandb="offline").wandb_mode == "offline"


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_tracker_whose_package_is_missing_is_refused_before_anything_loads(name, monkeypatch) -> None:
    monkeypatch.setattr(f"rlora.tracking.{name}_tracker.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=rf"{name}.* is not installed: pip install"):
        check_trackers(TrackingConfig(tracker=name))


def test_without_the_options_no_rollout_and_no_policy_is_given_away(tmp_path) -> None:
    config = replace(TRACKING, tracker=None, samples=0, policy=False)
    run_dir = run(toy(tmp_path / "run", num_steps=1, tracking=config))
    assert not list(run_dir.glob("wandb/offline-run-*/files/media"))
    (log,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    assert b"policy-" not in log.read_bytes()


STEP = {
    "reward/mean": 0.5,
    "rollout/truncated_share": 0.0,
    "throughput/sampled_tokens_per_second": 5.0,
    "seconds/step": 1.0,
}


def said_of(tmp_path, capsys, health, *, num_steps: int, rows=()) -> list[str]:
    config = TrackingConfig()
    with MetricsLog(tmp_path, config, num_steps=9, run_id="id", run_config={}, health=health) as log:
        log.begin(rows, step=len(rows))
        for step in range(len(rows), num_steps):
            log.write({"step": step, **STEP})
    return [line for line in capsys.readouterr().err.splitlines() if not line.startswith("step ")]


def test_what_is_off_is_said_once_until_it_is_something_else_or_comes_back(tmp_path, capsys) -> None:
    sentences = [None, "no signal since step 1", "no signal since step 1", "truncation.", None, "truncation."]
    seen = []

    def health(rows):
        seen.append([row["step"] for row in rows])
        return sentences[len(rows) - 1]

    end = f": see `rlora check {tmp_path}`."
    said = said_of(tmp_path, capsys, health, num_steps=6)
    assert said == [f"no signal since step 1{end}", f"truncation{end}", f"truncation{end}"]
    assert seen[-1] == [0, 1, 2, 3, 4, 5]


def test_a_run_that_goes_on_is_looked_at_from_its_first_step(tmp_path, capsys) -> None:
    before = [{"step": 0, **STEP}, {"step": 1, **STEP}]
    said = said_of(tmp_path, capsys, lambda rows: f"{len(rows)} steps", num_steps=3, rows=before)
    assert said == [f"3 steps: see `rlora check {tmp_path}`."]


def test_a_look_at_a_runs_health_that_fails_is_said_once_and_ends_nothing(tmp_path, capsys) -> None:
    (line,) = said_of(tmp_path, capsys, lambda rows: rows[7], num_steps=3)
    assert line.startswith("The run's health is not looked at any more (IndexError")
