"""Who is in a cohort, as the command line and a file name them."""

from dataclasses import replace

import pytest
from support.cohorts import member

from rlora.cohort.meeting import joint_shape
from rlora.cohort.members import grid_of, lines_of, members_of
from rlora.cohort.turns import SentAway, Turn, end_all
from rlora.commands.cli import main
from rlora.config import option_types
from rlora.errors import ConfigError
from rlora.lora.config import LoraConfig
from rlora.run_config import RunConfig
from rlora.store.cohort_dir import member_dir

pytestmark = pytest.mark.unit
OPTIONS = option_types(RunConfig)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--seed 0 1", [["--seed", "0"], ["--seed", "1"]]),
        ("--seed=3 --num-steps 2", [["--seed", "3", "--num-steps", "2"]]),
        ("--seed 0 1 --curriculum", [["--curriculum", "True", "--seed", "0"], ["--curriculum", "True", "--seed", "1"]]),
        ("--data-seed -1 -2", [["--data-seed", "-1"], ["--data-seed", "-2"]]),
        ("", [[]]),
        (
            "--lora.rank 1 4 --seed 0 1",
            [
                ["--lora.rank", "1", "--seed", "0"],
                ["--lora.rank", "1", "--seed", "1"],
                ["--lora.rank", "4", "--seed", "0"],
                ["--lora.rank", "4", "--seed", "1"],
            ],
        ),
    ],
)
def test_options_with_several_values_make_a_grid(given, expected) -> None:
    assert grid_of(given.split(), OPTIONS) == expected


def test_values_of_an_option_that_takes_many_are_one_value() -> None:
    assert grid_of(["--tracking.names", "a", "b"], {"tracking.names": tuple[str, ...]}) == [
        ["--tracking.names", "a", "b"]
    ]


@pytest.mark.parametrize(
    ("given", "message"), [("--seed 0 1 0", "--seed names 0 twice"), ("7 --seed 0", "stands before")]
)
def test_what_is_no_grid_is_refused(given, message) -> None:
    with pytest.raises(ConfigError, match=message):
        grid_of(given.split(), OPTIONS)


def test_a_file_names_a_member_a_line(tmp_path) -> None:
    file = tmp_path / "members.txt"
    file.write_text("# rates\nslow: --optimizer.learning-rate 1e-4\n\n--seed 1  # another\n")
    assert lines_of(file) == [("slow", ["--optimizer.learning-rate", "1e-4"]), (None, ["--seed", "1"])]
    file.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="names no member"):
        lines_of(file)
    file.write_text("--seed '1\n")
    with pytest.raises(ConfigError, match="line 1: No closing quotation"):
        lines_of(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        lines_of(tmp_path / "missing.txt")


def test_members_are_named_by_what_tells_them_apart(tmp_path) -> None:
    configs = [
        member(tmp_path, rate=3e-4, seed=0),
        member(tmp_path, rate=1e-3, seed=1, lora=LoraConfig(rank=4)),
    ]
    found = members_of(configs, [None, None], tmp_path)
    assert [one.name for one in found] == ["r1-lr0.0003-s0", "r4-lr0.001-s1"]
    assert [one.config.run_dir for one in found] == [str(tmp_path / "members" / one.name) for one in found]
    assert [one.config.data.seed for one in found] == [0, 0]
    assert members_of(configs, ["a", None], tmp_path)[0].name == "a"


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b", "x" * 90])
def test_a_name_that_is_no_folder_beside_the_others_is_refused(name, tmp_path) -> None:
    if name == "":
        assert members_of([member(tmp_path)], [name], tmp_path)[0].name == "only"
        return
    with pytest.raises(ConfigError, match="a member is named"):
        members_of([member(tmp_path)], [name], tmp_path)


def test_members_that_are_the_same_or_share_too_little_are_refused(tmp_path) -> None:
    config = member(tmp_path)
    with pytest.raises(ConfigError, match="two members are named only"):
        members_of([config, config], [None, None], tmp_path)
    other = replace(config, model=replace(config.model, dtype="bfloat16"))
    with pytest.raises(ConfigError, match="'float32' -> 'bfloat16'"):
        members_of([config, other], [None, None], tmp_path)


def test_a_member_is_named_by_its_cohort(tmp_path) -> None:
    (tmp_path / "sweep" / "members" / "lr0.1-s0").mkdir(parents=True)
    assert member_dir(f"{tmp_path}/sweep:lr0.1-s0") == tmp_path / "sweep" / "members" / "lr0.1-s0"
    for other in (f"{tmp_path}/sweep:missing", f"{tmp_path}/sweep", "hub:name", ":a", "a:"):
        assert str(member_dir(other)) == other


def test_an_engine_is_built_for_all_shapes() -> None:
    shapes = [LoraConfig(rank=1, layers="attention"), LoraConfig(rank=8, layers="mlp")]
    joint = joint_shape(shapes)
    assert (joint.rank, joint.layers) == (8, "attention+mlp")


def test_turns_compute_one_at_a_time_and_in_order() -> None:
    said = []

    def work(turn: Turn) -> str:
        for number in range(2):
            said.append((turn.name, number, turn.ask(number)))
        return turn.name

    turns = [Turn(name, work) for name in "ab"]
    for answer in (None, "x", "y"):
        for turn in turns:
            turn.go_on(answer)
    assert said == [("a", 0, "x"), ("b", 0, "x"), ("a", 1, "y"), ("b", 1, "y")]
    assert [turn.result() for turn in turns] == ["a", "b"]


def test_a_turn_raises_what_its_work_raised_and_unwinds_when_it_is_sent_away() -> None:
    left = []

    def work(turn: Turn) -> None:
        try:
            turn.ask("?")
        except SentAway:
            left.append(turn.name)
            raise

    def failing(turn: Turn) -> None:
        raise ValueError("no")

    waiting, unstarted, failed = Turn("waiting", work), Turn("unstarted", work), Turn("failed", failing)
    waiting.go_on()
    failed.go_on()
    end_all([waiting, unstarted, failed])
    assert left == ["waiting"]
    assert all(turn.has_ended for turn in (waiting, unstarted, failed))
    with pytest.raises(ValueError, match="no"):
        failed.result()


def test_the_command_explains_itself_and_says_who_would_train(capsys, tmp_path) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    assert "--halving" in capsys.readouterr().out
    rates = ["--optimizer.learning-rate", "1e-3", "3e-3"]
    main(["sweep", "arithmetic", "--preset", "toy", *rates, "--run-dir", str(tmp_path / "s"), "--dry-run"])
    said = capsys.readouterr().err
    assert "members/lr0.001" in said
    assert "Memory, calculated: 0." in said
    assert not (tmp_path / "s").exists()
    with pytest.raises(SystemExit):
        main(["sweep", "arithmetic", "--preset", "toy", "--cohort", "x.txt", *rates])
    assert "not both" in capsys.readouterr().err
