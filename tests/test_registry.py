"""Names of the command line: a table's line, or module:name of a user's own."""

import sys
from collections.abc import Iterator

import pytest
from support.policies import ROOT
from support.recipes import presets

from rlora import config
from rlora.errors import ConfigError
from rlora.registry import check_name, find, find_callable, load
from rlora.sampler.base import SAMPLERS, SamplerConfig
from rlora.tasks import TASKS, DataConfig, task
from rlora.tracking import TrackingConfig
from rlora.train.losses import LOSSES, LossConfig

pytestmark = pytest.mark.unit
TABLE = {"one": 1, "tau": "math:tau"}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Iterator[None]:
    """The working directory holds modules of a user."""
    (tmp_path / "found_here.py").write_text(
        "from rlora.tasks import TASKS\nvalue = 3\ndef double(x): return 2 * x\ndef made(): return TASKS['digits']\n"
    )
    (tmp_path / "needs_more.py").write_text("import surely_not_installed\n")
    (tmp_path / "broken_here.py").write_text("def double(x) return 2 * x\n")
    (tmp_path / "folder_here").mkdir()
    (tmp_path / "folder_here" / "inner.py").write_text("class Maker:\n    def make(self): return self\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in ("found_here", "folder_here")]:
        del sys.modules[name]


def test_a_name_is_a_line_of_the_table_or_a_users_own(here) -> None:
    assert find("one", TABLE, unknown="x") == 1
    assert find("tau", TABLE, unknown="x") == pytest.approx(6.283185307)
    assert find("found_here:double", TABLE, unknown="x")(4) == 8
    assert load("folder_here.inner:Maker.make").__qualname__ == "Maker.make"
    assert find_callable("found_here:double", TABLE, unknown="x", called="() -> x")(1) == 2
    check_name("tau", TABLE, unknown="x")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two", r"^n is 'two'; it must be one of one, tau, or your own, as in my_module:my_name\.$"),
        (
            "no_such_module:f",
            r"there is no module 'no_such_module' for 'no_such_module:f': neither no_such_module\.py in",
        ),
        ("found_here.deep:f", r"there is no module 'found_here\.deep'"),
        ("found_here:triple", r"found_here \(.*found_here\.py\) has no 'triple', only double, made"),
        ("found_here:double.deep", r"has no 'double\.deep'"),
        (":f", "':f' is not of the form module:name"),
        ("found_here:", "'found_here:' is not of the form module:name"),
        ("found_here:a:b", "is not of the form module:name"),
        ("../found_here:double", "is not of the form module:name"),
    ],
)
def test_what_is_not_there_is_explained(here, name, message) -> None:
    for look in (find, check_name):
        with pytest.raises(ConfigError, match=message):
            look(name, TABLE, unknown=f"n is {name!r}")


def test_what_goes_wrong_inside_a_users_module_is_shown_as_what_it_is(here) -> None:
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        load("needs_more:f")
    with pytest.raises(SyntaxError, match=r"broken_here\.py"):
        load("broken_here:double")


def test_what_cannot_be_called_is_refused(here) -> None:
    with pytest.raises(ConfigError, match=r"n is 'x', which is 3; it must be callable: A -> B\."):
        find_callable("found_here:value", {}, unknown="n is 'x'", called="A -> B")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (LossConfig(name="found_here:value"), "loss.name is 'found_here:value', which is 3; it must be callable"),
        (LossConfig(name="found_here:none"), "has no 'none'"),
        (SamplerConfig(kind="nowhere:make"), "there is no module 'nowhere'"),
        (
            TrackingConfig(tracker="mlflow"),
            "'mlflow'; it must be one of tensorboard, trackio, wandb, or your own",
        ),
        (TrackingConfig(tracker="tensorboard,mlflow"), "tracking.tracker is 'mlflow'; it must be one of"),
        (TrackingConfig(samples=-1), "tracking.samples is -1; it must be at least 0"),
        (TrackingConfig(quiet=True, verbose=True), "tracking.quiet and tracking.verbose ask for opposite things"),
        (TrackingConfig(tracker="found_here:value"), "which is 3; it must be callable: TrackedRun -> Tracker"),
    ],
)
def test_a_configuration_is_checked_by_its_table(here, part, message) -> None:
    with pytest.raises(ConfigError, match=message):
        part.check()


def test_a_task_of_a_users_own_is_an_object_or_what_a_function_returns(here) -> None:
    assert task("found_here:made") is TASKS["digits"]
    DataConfig(name="found_here:made").check()
    with pytest.raises(ConfigError, match=r"the data set found_here:value is 3; it must be a rlora\.tasks\.Task"):
        task("found_here:value")


def test_every_line_of_a_table_is_there_and_the_help_lists_it(capsys) -> None:
    for name in SAMPLERS:
        if name != "vllm":  # takes seconds to import, and is tried by its own tests
            assert callable(find(name, SAMPLERS, unknown=""))
    with pytest.raises(SystemExit):
        config.cli(presets(ROOT / "recipes" / "gsm8k.py"), description="D", arguments=["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in (*LOSSES, *SAMPLERS, "auto", "mathematics", "my_module:my_loss"))
