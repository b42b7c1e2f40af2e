"""A name is not the thing: the base, the data and an adapter's base are compared by what they hold."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support import evaluations
from support.outside import config_of, edit_json, jsonl, rollouts, sums, toy_folder

from rlora.commands.cli import main
from rlora.errors import AdapterError, ConfigError, RunDirError
from rlora.evaluation.run import evaluate_benchmarks
from rlora.loop import run
from rlora.model.identity import base_digests, changed_parts
from rlora.model.sources import ModelConfig
from rlora.store.run_dir import read_json
from rlora.tasks import DataConfig

pytestmark = pytest.mark.unit


@pytest.fixture
def begun(tmp_path):
    """Return the configuration of a run of two steps on a model's folder and a file of problems."""
    (tmp_path / "data").mkdir()
    model, train = toy_folder(tmp_path / "model"), sums(tmp_path / "data" / "t.jsonl")
    config = config_of(tmp_path / "run", model=model, train=train, num_steps=2, problems_per_step=8)
    run(config)
    return config


def changed_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][5] += 1e-3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


CHANGES = {
    "weights": changed_weight,
    "config": lambda folder: edit_json(folder / "config.json", lambda stored: stored.update(rms_norm_eps=1e-2)),
    "tokenizer": lambda folder: edit_json(
        folder / "tokenizer.json", lambda stored: stored["model"]["vocab"].update(W=stored["model"]["vocab"].pop("Q"))
    ),
    "template": lambda folder: (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}"),
}


@pytest.mark.parametrize("part", CHANGES)
def test_a_digest_sees_each_part_of_a_base_and_nothing_else(tmp_path, part) -> None:
    before = base_digests(toy_folder(tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    edit_json(tmp_path / "b" / "config.json", lambda stored: stored.update(transformers_version="9"))
    assert base_digests(tmp_path / "b") == before
    CHANGES[part](tmp_path / "b")
    assert changed_parts(before, base_digests(tmp_path / "b")) == [part]


def test_large_weights_are_sampled_and_other_ones_are_seen(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("rlora.model.identity._READ_WHOLE", 4)
    before = base_digests(toy_folder(tmp_path / "a"))
    assert base_digests(tmp_path / "a") == before
    assert changed_parts(before, base_digests(toy_folder(tmp_path / "b", seed=5))) == ["weights"]


@pytest.mark.loop
@pytest.mark.parametrize("part", CHANGES)
def test_a_replaced_base_is_refused_by_a_run_that_goes_on_its_evaluation_and_its_export(begun, part, tmp_path) -> None:
    stated = read_json(Path(begun.run_dir) / "environment.json")["base"]
    assert stated.keys() == CHANGES.keys()
    assert json.loads((Path(begun.run_dir) / "adapter" / "rlora.json").read_text())["base"] == stated
    CHANGES[part](Path(begun.model.name))
    files = {path: path.read_bytes() for path in Path(begun.run_dir).rglob("*") if path.is_file()}
    message = rf"the model .*/model is not the one that .* was trained on: they differ in {part}\."
    longer = dataclasses.replace(begun, num_steps=4)
    for config in (longer, dataclasses.replace(longer, branch=str(tmp_path / "branch"))):
        with pytest.raises(RunDirError, match=message):
            run(config)
    with pytest.raises(RunDirError, match=message):
        evaluate_benchmarks(evaluations.toy(tmp_path / "out", run=begun.run_dir, limit=1))
    with pytest.raises(SystemExit):
        main(["export", begun.run_dir, "--to", str(tmp_path / "merged"), "--merge"])
    assert files == {path: path.read_bytes() for path in Path(begun.run_dir).rglob("*") if path.is_file()}
    assert not any((tmp_path / name).exists() for name in ("branch", "out", "merged"))


@pytest.mark.loop
def test_what_moved_is_taken_under_its_new_name_if_it_is_the_same(begun, tmp_path) -> None:
    moved = {name: (tmp_path / name).rename(tmp_path / f"{name}2") for name in ("model", "data", "run")}
    config = dataclasses.replace(
        begun,
        run_dir=str(moved["run"]),
        model=dataclasses.replace(begun.model, name=str(moved["model"])),
        data=DataConfig(train=str(moved["data"] / "t.jsonl")),
        num_steps=3,
    )
    run(config)
    run(dataclasses.replace(config, branch=str(tmp_path / "branch@2")))
    assert rollouts(tmp_path / "branch", 2) == rollouts(moved["run"], 2)
    (moved["model"]).rename(tmp_path / "model3")
    options = {"run": str(moved["run"]), "limit": 2, "samples": 1}
    here = evaluations.toy(tmp_path / "out", model=str(tmp_path / "model3"), **options)
    evaluate_benchmarks(here)
    shutil.copytree(tmp_path / "model3", tmp_path / "model4")
    again = evaluate_benchmarks(dataclasses.replace(here, model=str(tmp_path / "model4"), limit=3))
    assert again["benchmarks"]["digits"]["num_problems"] == 3
    main(["export", str(moved["run"]), "--to", str(tmp_path / "m"), "--merge", "--model", str(tmp_path / "model3")])
    with pytest.raises(RunDirError, match="they differ in weights"):
        evaluate_benchmarks(dataclasses.replace(here, model=str(toy_folder(tmp_path / "other", seed=5))))


@pytest.mark.loop
def test_another_test_set_under_the_same_name_is_refused(begun, tmp_path) -> None:
    config = dataclasses.replace(
        begun, run_dir=str(tmp_path / "tested"), data=DataConfig(train=begun.data.train, test=str(tmp_path / "e.jsonl"))
    )
    jsonl(tmp_path / "e.jsonl", [{"question": "What is 9 + 9?", "answer": "18"}])
    run(config)
    jsonl(tmp_path / "e.jsonl", [{"question": "What is 9 + 0?", "answer": "9"}])
    with pytest.raises(RunDirError, match=r"the test problems are not those that .* was scored on"):
        run(dataclasses.replace(config, num_steps=3))


@pytest.mark.loop
def test_an_evaluation_does_not_mix_the_samples_of_two_bases(tmp_path) -> None:
    model = toy_folder(tmp_path / "model")
    config = evaluations.toy(tmp_path / "out", model=str(model), limit=2, samples=1)
    evaluate_benchmarks(config)
    changed_weight(model)
    with pytest.raises(RunDirError, match=r"it differs in\n  subject.base.weights: "):
        evaluate_benchmarks(dataclasses.replace(config, limit=4))


@pytest.mark.loop
def test_an_adapter_of_another_base_is_refused_and_a_doubtful_one_is_said(begun, tmp_path, capfd) -> None:
    adapter, other = Path(begun.run_dir) / "adapter", toy_folder(tmp_path / "other", seed=5)
    shutil.copytree(begun.model.name, tmp_path / "copy")
    config = dataclasses.replace(begun, init_adapter=str(adapter), run_dir=str(tmp_path / "second"), num_steps=1)
    on_other = dataclasses.replace(config, model=dataclasses.replace(config.model, name=str(other)))
    message = r"was trained on another base than .*/other: they differ in weights"
    with pytest.raises(AdapterError, match=message):
        run(on_other)
    with pytest.raises(AdapterError, match=message):
        evaluate_benchmarks(evaluations.toy(tmp_path / "out", adapter=str(adapter), model=str(other), limit=1))
    assert not (tmp_path / "second").exists()
    run(dataclasses.replace(config, model=dataclasses.replace(config.model, name=str(tmp_path / "copy"))))
    assert "Warning: " not in capfd.readouterr().err.replace("Warning: the learning rate", "")
    (adapter / "rlora.json").unlink()  # as one from elsewhere
    run(dataclasses.replace(on_other, run_dir=str(tmp_path / "third")))
    said = f"Warning: {adapter} was trained on the base {begun.model.name!r}, and the model here is {str(other)!r}"
    assert said in capfd.readouterr().err
    evaluate_benchmarks(evaluations.toy(tmp_path / "out", adapter=str(adapter), model=str(other), limit=1, samples=1))
    assert said in capfd.readouterr().err


@pytest.mark.loop
def test_a_run_of_an_older_rlora_goes_on_without_digests_under_its_own_names_alone(begun, tmp_path) -> None:
    edit_json(Path(begun.run_dir) / "environment.json", lambda stored: list(map(stored.pop, ("base", "data"))).clear())
    shutil.copytree(begun.model.name, tmp_path / "copy")
    copied = dataclasses.replace(begun, model=ModelConfig(name=str(tmp_path / "copy"), dtype="float32"), num_steps=3)
    with pytest.raises(RunDirError, match=r"differs in\n  model.name"):
        run(copied)
    with pytest.raises(ConfigError, match="leave --model out"):
        evaluate_benchmarks(evaluations.toy(tmp_path / "out", run=begun.run_dir, model=copied.model.name))
    run(dataclasses.replace(begun, num_steps=3))
    assert "base" in read_json(Path(begun.run_dir) / "environment.json")


@pytest.mark.loop
def test_a_merged_model_has_the_bases_own_generation_config_and_is_whole_or_not_there(begun, tmp_path) -> None:
    stored = {"eos_token_id": 0, "do_sample": False, "temperature": 0.9, "top_p": 0.6}
    edit_json(Path(begun.run_dir) / "environment.json", lambda values: values.pop("base"))
    model = Path(begun.model.name)
    (model / "generation_config.json").write_text(json.dumps(stored))
    config = dataclasses.replace(begun, run_dir=str(tmp_path / "second"))
    run(config)
    main(["export", config.run_dir, "--to", str(tmp_path / "merged"), "--merge"])
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text()) == stored
    shutil.rmtree(Path(config.run_dir) / "rollouts")
    with pytest.raises(SystemExit):
        main(["export", config.run_dir, "--to", str(tmp_path / "none"), "--merge"])
    assert not (tmp_path / "none").exists()
