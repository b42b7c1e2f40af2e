"""Models from outside: what rlora cannot compute rightly is refused by name, before anything loads or is written."""

import dataclasses
from types import SimpleNamespace

import pytest
from support import evaluations
from support.outside import config_of, edit_json, jsonl, sums, toy_folder

from rlora.commands.cli import main
from rlora.errors import ConfigError
from rlora.evaluation.run import evaluate_benchmarks
from rlora.loop import run
from rlora.model.limits import check_lengths
from rlora.model.sources import ModelConfig, model_dir, told_as_config_errors
from rlora.types import SamplingParams

pytestmark = pytest.mark.unit
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}


def model_config(**fields):
    config = SimpleNamespace(**{"max_position_embeddings": 64, **fields})
    config.get_text_config = lambda: config
    return config


def check(prompt: int, completion: int, **fields) -> None:
    check_lengths(model_config(**fields), prompt=prompt, completion=completion, option="--max-tokens")


@pytest.mark.parametrize(
    ("length", "fields"),
    [
        (64, {}),
        (10_000, {"max_position_embeddings": None}),
        (64, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
        (64, {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}),
        (32, {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 32}}),
        (256, {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
        (256, {"rope_scaling": {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}}),
        (64, {"rope_parameters": {"full_attention": {"rope_type": "llama3", "factor": 8.0}}}),
    ],
)
def test_lengths_up_to_what_the_model_holds_are_taken_and_one_more_is_refused(length, fields) -> None:
    check(length - 10, 10, **fields)
    if fields.get("max_position_embeddings", 64) is not None:
        with pytest.raises(ConfigError, match=rf"prompts up to {length - 10} and completions up to 11 tokens need"):
            check(length - 10, 11, **fields)


def test_rotations_by_length_and_unknown_ones_are_named() -> None:
    nested = {"a": {"rope_type": "default"}, "b": {"rope_type": "dynamic"}}
    with pytest.raises(ConfigError, match=r"\(dynamic\) change for rows of more than 64: .* lower .* or --max-tokens"):
        check(60, 10, rope_parameters=nested)
    with pytest.raises(ConfigError, match=r"of the kind 'wavy', which is not known here; known are default, linear"):
        check(1, 1, rope_parameters={"rope_type": "wavy"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_position_embeddings": 64}, "need 500 positions, the model has 64; lower --sampler.max-prompt-tokens"),
        (
            {
                "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
                "max_position_embeddings": 450,
            },
            r"rotary embeddings \(dynamic\) change for rows of more than 450",
        ),
    ],
)
def test_a_run_and_an_evaluation_that_are_too_long_are_refused(tmp_path, fields, message) -> None:
    model = toy_folder(tmp_path / "model", **fields)
    config = config_of(
        tmp_path / "run", model=model, train=sums(tmp_path / "t.jsonl"), sampling=SamplingParams(max_tokens=100)
    )
    with pytest.raises(ConfigError, match=message):
        run(config)
    with pytest.raises(ConfigError, match=message):
        evaluate_benchmarks(evaluations.toy(tmp_path / "out", model=str(model), max_tokens=100, limit=1))
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("template", ["{{ '<user>' + messages[0]['content'] }}", None])
def test_tokens_beyond_the_embedding_are_named_if_a_prompt_holds_them(tmp_path, template) -> None:
    model = toy_folder(tmp_path / "model", template=template, special=("<user>",))
    if template is None:  # a special token is characters in a question
        edit_json(model / "tokenizer.json", lambda stored: stored["added_tokens"][-1].update(special=False))
        edit_json(
            model / "tokenizer_config.json",
            lambda stored: stored.pop("additional_special_tokens", stored.pop("extra_special_tokens", None)),
        )
    rows = [{"question": f"What is {n} + 3?", "answer": str(n + 3)} for n in range(20)]
    if template is None:
        run(config_of(tmp_path / "fine", model=model, train=jsonl(tmp_path / "fine.jsonl", rows)))
        rows[7]["question"] = "What is <user> + 3?"
    config = config_of(tmp_path / "run", model=model, train=jsonl(tmp_path / "t.jsonl", rows))
    with pytest.raises(ConfigError, match=r"the prompt of t/\d+ has the tokens '<user>' \(53\), .* has only 53 rows"):
        run(config)
    with pytest.raises(ConfigError, match="has only 53 rows"):
        evaluate_benchmarks(
            evaluations.toy(tmp_path / "out", model=str(model), benchmark=str(tmp_path / "t.jsonl"), samples=1)
        )
    assert not (tmp_path / "run").exists()


def test_an_adapter_beside_a_model_is_refused(tmp_path) -> None:
    folder = toy_folder(tmp_path)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds an adapter \(adapter_config.json\) beside a model"):
        model_dir(ModelConfig(name=str(folder)))


@pytest.mark.parametrize("error", [KeyError("x"), AttributeError("y"), TypeError("z"), RecursionError("deep")])
def test_whatever_a_library_raises_is_a_config_error(tmp_path, error) -> None:
    with pytest.raises(ConfigError, match=r"the model in .* cannot be read"), told_as_config_errors("model", tmp_path):
        raise error


def test_a_broken_tokenizer_is_a_config_error(tmp_path) -> None:
    model = toy_folder(tmp_path / "model")
    edit_json(model / "tokenizer.json", lambda stored: stored.update(model={"type": "Nothing"}))
    with pytest.raises(ConfigError, match=r"the tokenizer in .* cannot be read"):
        run(config_of(tmp_path / "run", model=model, train=sums(tmp_path / "t.jsonl")))


def test_a_run_whose_base_moved_is_exported_and_the_way_out_is_named(tmp_path, capsys) -> None:
    model = toy_folder(tmp_path / "model")
    config = config_of(tmp_path / "run", model=model, train=sums(tmp_path / "t.jsonl"))
    run_dir = str(run(dataclasses.replace(config, problems_per_step=2, samples_per_problem=4)))
    moved = model.rename(tmp_path / "moved")
    main(["export", run_dir, "--to", str(tmp_path / "adapter")])
    assert "No tokenizer lies beside the adapter, since its base is not here" in capsys.readouterr().out
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    with pytest.raises(SystemExit):
        main(["export", run_dir, "--to", str(tmp_path / "merged"), "--merge"])
    assert "Where the base lies elsewhere now, name it by --model." in capsys.readouterr().err
    main(["export", run_dir, "--to", str(tmp_path / "merged"), "--merge", "--model", str(moved)])
    main(["export", run_dir, "--to", str(tmp_path / "with"), "--model", str(moved)])
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert (tmp_path / "with" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": -1e4}}, "makes numbers that are not finite"),
        ({"rms_norm_eps": -1e9}, "makes numbers that are not finite"),
        ({"attention_multiplier": "much", "hidden_act": "gelu_of_nobody"}, r"the \w+ in .* cannot be"),
    ],
)
def test_a_model_that_cannot_be_computed_with_is_a_config_error(tmp_path, fields, message) -> None:
    model = toy_folder(tmp_path / "model", **fields)
    with pytest.raises(ConfigError, match=message):
        run(config_of(tmp_path / "run", model=model, train=sums(tmp_path / "t.jsonl")))


def test_what_a_trial_of_the_model_raises_is_a_config_error(tmp_path, monkeypatch) -> None:
    def forward(*_args: object, **_options: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    model = toy_folder(tmp_path / "model")
    monkeypatch.setattr("transformers.LlamaModel.forward", forward)
    with pytest.raises(ConfigError, match=r"the model in .* cannot be computed with: mat1 and mat2"):
        run(config_of(tmp_path / "run", model=model, train=sums(tmp_path / "t.jsonl")))


def test_an_end_token_beyond_the_vocabulary_is_said(tmp_path, capsys) -> None:
    model = toy_folder(tmp_path / "model")
    edit_json(model / "generation_config.json", lambda stored: stored.update(eos_token_id=[0, 10**6]))
    config = config_of(tmp_path / "run", model=model, train=sums(tmp_path / "t.jsonl"))
    run(dataclasses.replace(config, problems_per_step=2, samples_per_problem=4))
    assert "the end tokens [1000000] of" in capsys.readouterr().err
