import dataclasses
import json
import re
from pathlib import Path

import pytest
from support.recipes import presets

from rlora import config
from rlora.errors import ConfigError, MissingDependencyError
from rlora.evaluation.config import PRESETS, EvalConfig
from rlora.evaluation.run import evaluate_benchmarks
from rlora.loop import run
from rlora.lora.config import LoraConfig
from rlora.model.sources import ModelConfig, model_dir
from rlora.run_config import RunConfig
from rlora.sampler import base
from rlora.sampler.base import SamplerConfig
from rlora.tasks import DataConfig
from rlora.tasks.prompts import PromptConfig
from rlora.tracking import TrackingConfig
from rlora.train.losses import LossConfig
from rlora.train.optimizer import OptimizerConfig
from rlora.types import SamplingParams

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.py"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_preset_is_valid_named_after_itself_and_survives_json(path) -> None:
    found = presets(path)
    assert {"cpu", "toy"} <= found.keys()
    for name, preset in found.items():
        preset.check()
        assert preset.preset == name
        assert config.from_json(type(preset), json.loads(json.dumps(config.to_json(preset)))) == preset


@pytest.mark.parametrize(
    ("version", "is_taken"),
    [("0.26.0", True), ("0.32.0+cpu", True), ("0.25.3", False), ("0.33.0", False), ("1.0", False), ("dev", True)],
)
def test_a_vllm_that_was_never_tried_is_refused_with_the_versions_that_were(monkeypatch, version, is_taken) -> None:
    monkeypatch.setattr(base.metadata, "version", lambda _: version)
    monkeypatch.setattr(base, "is_vllm_installed", lambda: True)
    if is_taken:
        SamplerConfig(kind="vllm").check()
        return
    with pytest.raises(MissingDependencyError, match=rf"{version} is installed, .* pip install 'vllm>=0\.26,<0\.33'"):
        SamplerConfig(kind="auto").check()
    SamplerConfig(kind="torch").check()


def test_command_line_sets_fields_by_dotted_name_over_a_preset() -> None:
    chosen = presets(ROOT / "recipes" / "arithmetic.py")
    arguments = ["--preset", "toy", "--num-steps", "9", "--run-dir", "here", "--seed", "5", "--lora.rank", "4"]
    parsed = config.cli(chosen, description="", arguments=[*arguments, "--model.trust-remote-code", "True"])
    expected = dataclasses.replace(
        chosen["toy"],
        num_steps=9,
        run_dir="here",
        seed=5,
        lora=LoraConfig(rank=4),
        model=dataclasses.replace(chosen["toy"].model, trust_remote_code=True),
    )
    assert parsed == expected


def fields(kind: type, prefix: str = "") -> list[str]:
    names = []
    for field in dataclasses.fields(kind):
        default = field.default_factory() if callable(field.default_factory) else None  # type: ignore[misc]
        if dataclasses.is_dataclass(default):
            names += fields(type(default), "" if field.name == "data" else f"{prefix}{field.name}.")
        else:
            names.append("data" if (kind, field.name) == (DataConfig, "name") else prefix + field.name)
    return names


def test_help_explains_every_field(capsys) -> None:
    with pytest.raises(SystemExit) as exit_info:
        config.cli(presets(ROOT / "recipes" / "gsm8k.py"), description="D", arguments=["--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    for name in fields(RunConfig):
        assert f"--{name.replace('_', '-')}" in text, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "half"}, "method is 'half'; it must be one of lora, full."),
        ({"advantage": "none"}, "advantage is 'none'; it must be one of centered, standardized, leave_one_out, raw."),
        ({"lora": LoraConfig(variant="dora")}, "lora.variant is 'dora'; it must be one of lora, rslora, pissa."),
        ({"model": ModelConfig(dtype="int8")}, "model.dtype is 'int8'; it must be one of bfloat16, float16, float32."),
        ({"model": ModelConfig(compile="yes")}, "model.compile is 'yes'; it must be one of auto, on, off."),
        ({"loss": LossConfig(name="grpo")}, "loss.name is 'grpo'; it must be one of importance_weighted, ppo, "),
        (
            {"optimizer": OptimizerConfig(schedule="step")},
            "optimizer.schedule is 'step'; it must be one of constant, linear, cosine.",
        ),
        ({"prompt": PromptConfig(template="raw")}, "prompt.template is 'raw'; it must be one of auto, chat, plain."),
        ({"sampler": SamplerConfig(kind="vlm")}, "sampler.kind is 'vlm'; it must be one of auto, vllm, torch, or"),
        ({"sampler": SamplerConfig(share_base="yes")}, "sampler.share_base is 'yes'; it must be one of auto, on, off."),
        (
            {"tracking": TrackingConfig(wandb="on")},
            "tracking.wandb is 'on'; it must be one of online, offline, disabled.",
        ),
    ],
)
def test_a_choice_that_there_is_not_is_refused(options, message) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        RunConfig(run_dir="x", **options).check()


def test_a_choice_may_be_left_out_where_its_type_says_so() -> None:
    EvalConfig(model="toy", benchmark="digits", sampler=SamplerConfig(kind="torch")).check()
    with pytest.raises(ConfigError, match=r"dtype is 'int8'; it must be one of bfloat16, float16, float32\."):
        EvalConfig(model="toy", dtype="int8").check()


def test_every_field_has_a_help_text() -> None:
    """A string follows each field in the source; tyro shows it."""
    import ast

    missing = []
    for path in (ROOT / "rlora").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and (node.name.endswith("Config") or node.name == "SamplingParams"):
                missing += [f"{node.name}.{name}" for name in undocumented(node)]
    assert missing == []


def undocumented(node) -> list[str]:
    import ast

    names = []
    for index, statement in enumerate(node.body):
        if isinstance(statement, ast.AnnAssign) and not any(
            kind in ast.unparse(statement.annotation) for kind in ("Config", "SamplingParams")
        ):
            after = node.body[index + 1] if index + 1 < len(node.body) else None
            if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
                names.append(statement.target.id)
    return names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "huge"], "invalid choice: 'huge'"),
        (["--no-such-field", "1"], "no-such-field"),
        (["--num-steps", "many"], "many"),
    ],
)
def test_wrong_options_end_with_code_2(arguments, message, capsys) -> None:
    with pytest.raises(SystemExit) as exit_info:
        config.cli(presets(ROOT / "recipes" / "arithmetic.py"), description="", arguments=arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": LoraConfig(rank=0)}, "lora.rank is 0; it must be from 1 to 512"),
        ({"lora": LoraConfig(layers="head")}, "lora.layers is 'head'; it must be all, or some of attention, mlp"),
        ({"lora": LoraConfig(alpha=0)}, "lora.alpha is 0; it must be above 0"),
        ({"lora": LoraConfig(alpha=float("inf"))}, "lora.alpha is inf; it must be above 0"),
        ({"memory_budget": float("inf")}, "memory_budget is inf; it must be above 0"),
        ({"samples_per_problem": 1}, "samples_per_problem is 1; a group of one has no baseline"),
        ({"num_steps": 0}, "num_steps and problems_per_step must be at least 1"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"data": DataConfig(name="aime1066")}, "the data set 'aime1066' is unknown"),
        ({"advantage": "best"}, "advantage is 'best'"),
        ({"sampling": SamplingParams(top_p=0.9)}, "sampling.top_p is 0.9; training needs 1"),
        ({"sampling": SamplingParams(temperature=0.0)}, "greedy samples are all equal"),
        ({"sampling": SamplingParams(stop=("x",))}, "sampling.stop is for evaluation"),
        ({"sampling": SamplingParams(max_tokens=0)}, "sampling.max_tokens is 0"),
        ({"model": ModelConfig(dtype="int8")}, "model.dtype is 'int8'"),
        ({"model": ModelConfig(name="")}, "model.name is empty"),
        ({"sampler": SamplerConfig(kind="sglang")}, "sampler.kind is 'sglang'"),
        ({"sampler": SamplerConfig(kv_cache_gb=-1)}, "kv_cache_gb must be at least 0"),
    ],
)
def test_wrong_values_are_refused_before_anything_loads(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig(run_dir="x", **options).check()


def test_reinforce_without_baseline_allows_a_group_of_one() -> None:
    RunConfig(run_dir="x", samples_per_problem=1, advantage="raw").check()


def test_vllm_that_is_not_installed_is_refused_and_auto_falls_back(monkeypatch) -> None:
    monkeypatch.setattr(base, "is_vllm_installed", lambda: False)
    with pytest.raises(MissingDependencyError, match=r"not installed: run `make setup`.*--sampler.kind torch"):
        RunConfig(run_dir="x", sampler=SamplerConfig(kind="vllm")).check()
    assert SamplerConfig(kind="auto").resolved_kind == "torch"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "which is not a folder"),
        ("nobody/no-such-model", "no such folder, and the hub did not give it"),
    ],
)
def test_unknown_model(name, message) -> None:
    with pytest.raises(ConfigError, match=message):
        model_dir(ModelConfig(name=name))


def test_model_folder_without_safetensors_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"holds no config.json"):
        model_dir(ModelConfig(name=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(
        ConfigError, match=r"holds no \*.safetensors; .* Pickled weights \(.bin\) can run code and are refused"
    ):
        model_dir(ModelConfig(name=str(tmp_path)))


def test_differences_are_dotted_and_complete() -> None:
    old = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "e": None}
    new = {"a": 1, "b": {"c": [1, 3], "d": "x"}, "f": 2}
    assert config.differences(old, new) == ["b.c: [1, 2] -> [1, 3]", "f: None -> 2"]


def test_json_with_unknown_fields_is_refused() -> None:
    with pytest.raises(ConfigError, match="LoraConfig has no field ranks; was it written by another version"):
        config.from_json(LoraConfig, {"ranks": 1})


@pytest.mark.parametrize("kind", [RunConfig, EvalConfig])
def test_the_options_that_are_known_are_those_of_the_help(kind, capsys) -> None:
    path = ROOT / "recipes" / ("evaluate.py" if kind is EvalConfig else "gsm8k.py")
    with pytest.raises(SystemExit):
        config.cli(presets(path), description="", arguments=["--help"])
    shown = set(re.findall(r"^(?:│ )?\s*--([a-z][\w.-]*)", capsys.readouterr().out, re.MULTILINE))
    assert shown - {"help"} == config.option_types(kind).keys()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--curriculum"], (True, False)),
        (["--curriculum", "true", "--batch.recompute", "--seed", "3"], (True, True)),
        (["--curriculum=TRUE", "--no-curriculum"], (False, False)),
        (["--batch.recompute=yes"], (False, True)),
        (["--batch.no-recompute", "--curriculum", "False"], (False, False)),
        (["--no-batch.recompute", "--curriculum", "True"], (True, False)),
    ],
)
def test_switches_may_be_bare_and_of_any_case(arguments, expected) -> None:
    parsed = config.cli(presets(ROOT / "recipes" / "gsm8k.py"), description="", arguments=arguments)
    assert (parsed.curriculum, parsed.batch.recompute) == expected


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--lr", "--optimizer.learning-rate"),
        ("--rank=8", "--lora.rank"),
        ("--num_generations", "--samples-per-problem"),
        ("--curiculum", "--curriculum"),
        ("--max-tokens", "--sampling.max-tokens or --evaluation.max-tokens"),
        ("--model", "--model.name or --model.revision or --model.dtype"),
    ],
)
def test_an_option_that_there_is_not_names_the_one_that_was_meant(option, meant, capsys) -> None:
    with pytest.raises(SystemExit) as exit_info:
        config.cli(
            presets(ROOT / "recipes" / "gsm8k.py"), description="", arguments=[option, "8"], program="rlora train gsm8k"
        )
    assert exit_info.value.code == 2
    said = capsys.readouterr().err
    assert (
        f"rlora train gsm8k has no option {option.partition('=')[0].replace('_', '-')}. Did you mean {meant}?" in said
    )


@pytest.mark.parametrize("name", ["gsm8k", "hendrycks_math", "deepmath", "arithmetic"])
def test_a_gpu_preset_without_a_gpu_is_refused_before_anything_is_fetched(name, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("rlora.site.load_problems", None)  # would fail if it came to that
    preset = presets(ROOT / "recipes" / f"{name}.py")["gpu"]
    with pytest.raises(ConfigError, match=r"there is no GPU here, .*: add --preset cpu"):
        run(dataclasses.replace(preset, run_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"there is no GPU here, .*: add --preset cpu"):
        evaluate_benchmarks(dataclasses.replace(PRESETS["gpu"], model="toy", output=str(tmp_path / "eval")))
