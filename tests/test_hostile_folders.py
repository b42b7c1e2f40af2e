"""Models, templates and adapters of strangers: refused by name, in bounded time and memory. Toy model."""

import json
import shutil
import time
from pathlib import Path

import pytest
from support.policies import TOY_MODEL

from rlora.errors import AdapterError, ConfigError
from rlora.lora.peft.foreign import stored_shape
from rlora.model.sources import ModelConfig, config_dir, load_tokenizer, model_dir
from rlora.system.bounded import exceeded, time_limit
from rlora.tasks.prompts import PromptConfig, PromptRenderer

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(toy_dir, tmp_path) -> Path:
    return Path(shutil.copytree(toy_dir, tmp_path / "model"))


def edit(file: Path, **values) -> None:
    stored = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**stored, **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": -1}, "hidden_size=-1; it must be a number from 1 to"),
        ({"hidden_size": 10**6}, "hidden_size=1000000, and its weights hold 128 at most"),
        ({"hidden_size": 63}, "hidden_size=63, and none of its weights has that size"),
        ({"num_attention_heads": 0}, "num_attention_heads=0"),
        ({"num_key_value_heads": 2.5}, "num_key_value_heads=2.5"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers=1000000; it must be a number from 1 to 1000"),
        ({"num_hidden_layers": 900}, "num_hidden_layers=900, and its weights hold 21 at most"),
        ({"intermediate_size": "128"}, "intermediate_size='128'"),
        ({"vocab_size": 10**9}, "vocab_size=1000000000"),
        ({"max_position_embeddings": 10**15}, "max_position_embeddings=1000000000000000"),
        ({"text_config": {"num_hidden_layers": -3}}, "num_hidden_layers=-3"),
        ({"eos_token_id": list(range(2_000_000))}, "lists 2000000 end tokens"),
        ({"eos_token_id": [0, -4]}, "eos_token_id=-4"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_built(folder, values, message) -> None:
    edit(folder / "config.json", **values)
    start = time.monotonic()
    with pytest.raises(ConfigError, match=message):
        model_dir(ModelConfig(name=str(folder)))
    assert time.monotonic() - start < 2


def test_numbers_are_bounded_where_there_are_no_weights_yet_and_a_usual_folder_passes(folder) -> None:
    assert model_dir(ModelConfig(name=str(folder))) == folder
    for file in folder.glob("*.safetensors"):
        file.unlink()
    assert config_dir(ModelConfig(name=str(folder))) == folder
    edit(folder / "config.json", num_hidden_layers=5000)
    with pytest.raises(ConfigError, match="num_hidden_layers=5000; it must be a number from 1 to 1000"):
        config_dir(ModelConfig(name=str(folder)))


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/x.safetensors", "a\\b", "..", 5, ""])
def test_an_index_names_files_of_its_own_folder_alone(folder, name) -> None:
    edit(folder / "model.safetensors.index.json", weight_map={"model.norm.weight": name})
    with pytest.raises(ConfigError, match="only files in the same folder are read"):
        model_dir(ModelConfig(name=str(folder)))


def test_a_configuration_nested_without_end_is_refused(folder) -> None:
    (folder / "config.json").write_text('{"a":' * 200_000)
    with pytest.raises(ConfigError, match="nested too deeply"):
        model_dir(ModelConfig(name=str(folder)))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "more than 0.5 s"),
        ("{{ 'x' * 10000000000 }}", "more than 1 GiB of memory"),
        ("{{ '%4000000000d' % 1 }}", "more than 1 GiB of memory"),
    ],
)
def test_a_chat_template_without_end_is_refused(folder, monkeypatch, template, message) -> None:
    monkeypatch.setattr("rlora.tasks.chat._LIMIT_SECONDS", 0.5)
    tokenizer = load_tokenizer(folder, TOY_MODEL)
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=f"chat template takes {message}"):
        PromptRenderer(tokenizer, PromptConfig(), instruction="")


def test_a_limit_ends_what_lasts_and_leaves_what_does_not(tmp_path) -> None:
    def endless() -> None:
        while True:
            pass

    with pytest.raises(TimeoutError, match=r"within 0\.05 s"), time_limit(0.05):
        endless()
    with time_limit(0.05):
        pass
    time.sleep(0.1)  # nothing is left to fire
    assert exceeded(endless, seconds=0.2, gigabytes=1) == "time"
    assert exceeded(lambda: bytearray(2**32), seconds=20, gigabytes=1) == "memory"
    assert exceeded(lambda: (tmp_path / "made").touch(), seconds=20, gigabytes=1) == ""
    assert exceeded(lambda: 1 / 0, seconds=20, gigabytes=1) == ""


def test_a_pattern_of_an_adapter_is_never_matched(tmp_path, toy_policy) -> None:
    from rlora.lora.peft.peft_format import save_adapter

    save_adapter(toy_policy.snapshot(), tmp_path)
    edit(tmp_path / "adapter_config.json", rank_pattern={"([a-z.0-9_]+)*!": 2, "(": 2})
    start = time.monotonic()
    assert stored_shape(tmp_path)[0].rank == 2
    assert time.monotonic() - start < 2
    edit(tmp_path / "adapter_config.json", rank_pattern={}, r=10**9)
    with pytest.raises(AdapterError, match="r=1000000000"):
        stored_shape(tmp_path)
