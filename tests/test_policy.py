"""A policy on other architectures than the toy's, and what it refuses."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.engines import random_b
from support.models import folder_of
from support.rollouts import completion, group

from rlora.errors import ConfigError
from rlora.lora.config import LoraConfig
from rlora.model.sources import ModelConfig
from rlora.train.batching import BatchConfig, build_batch
from rlora.train.policy import Policy

pytestmark = pytest.mark.unit


WIDE = {"initializer_range": 0.3}  # so that what a layer carries along is as much as in a trained model
FALCON = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Llama", {"tie_word_embeddings": True}),
        ("Qwen2", {}),  # biases on q, k and v
        ("Qwen3", {"head_dim": 16}),  # norms on q and k
        ("Mistral", {"sliding_window": None}),
        ("Olmo2", {}),
        ("Gemma", {"head_dim": 8}),
    ],
)
def test_scores_equal_transformers_own_with_the_adapter_merged(kind, options, tmp_path) -> None:
    folder = folder_of(kind, tmp_path, **options)
    policy = Policy.load(folder, ModelConfig(dtype="float32"), LoraConfig(rank=2), seed=0)
    random_b(policy, scale=0.02)
    prompt, answers = [5, 6, 7], [[9, 8, 30, 31], [40, 3]]
    groups = [group(prompt, [completion(answer) for answer in answers], [1.0, 0.0])]
    (part,) = build_batch(groups, [[0.5, -0.5]], BatchConfig(), version=0).micro_batches
    with torch.no_grad():
        scores = policy.score(part)

    merged = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, tensor in policy.flat.tensors().items():
        path, _, factor = name.rpartition(".")
        if factor == "lora_B":
            update = policy.config.scale * tensor @ policy.flat.tensors()[f"{path}.lora_A"]
            merged.get_submodule(path).weight.data += update
    expected = []
    for answer in answers:
        with torch.no_grad():
            log_p = merged(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected += log_p[torch.arange(len(answer)), torch.tensor(answer)].tolist()
    assert scores.logprobs_N.tolist() == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("Mistral", {"sliding_window": 4096}, "sliding-window attention .4096 positions"),
        ("Starcoder2", {"sliding_window": 64}, "sliding-window"),
        ("Phi", {}, "a bias, a scale"),
        ("Lfm2", {"layer_types": ["conv", "full_attention"], **WIDE}, "a completion changes with others in its row"),
        ("FalconH1", {**FALCON, **WIDE}, "a completion changes with others in its row"),
        ("Gemma2", {"head_dim": 8, "final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0|sliding-window"),
        ("Cohere", {"logit_scale": 0.06}, "logit_scale=0.06"),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}, "sliding-window"),
    ],
)
def test_models_that_would_be_scored_wrongly_are_refused(kind, options, message, tmp_path) -> None:
    folder = folder_of(kind, tmp_path, **options)
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(ConfigError, match=message):
            Policy.load(folder, ModelConfig(dtype=dtype), LoraConfig(), seed=0)


@pytest.mark.parametrize("kind", ["Phi3", "Cohere"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_the_kernels_do_not_fit_is_scored_plainly(kind, dtype, tmp_path, capfd) -> None:
    options = {"logit_scale": 1.0} if kind == "Cohere" else {}
    folder, scores = folder_of(kind, tmp_path, **options), []
    (part,) = build_batch(
        [group([5, 6, 7], [completion([9, 8, 30, 31]), completion([40, 3])], [1.0, 0.0])],
        [[0.5, -0.5]],
        BatchConfig(),
        version=0,
    ).micro_batches
    for compile_ in ("off", "on"):
        policy = Policy.load(folder, ModelConfig(dtype=dtype, compile=compile_), LoraConfig(rank=2), seed=0)
        random_b(policy, scale=0.02)
        scores.append(policy.score(part).logprobs_N)
        scores[-1].sum().backward()
    assert f"No compiled kernel fits {kind}" in capfd.readouterr().err
    torch.testing.assert_close(*scores, rtol=0, atol=1e-5 if dtype == "float32" else 0.03)


def test_broken_model_folders_are_refused_with_what_is_wrong(tmp_path) -> None:
    def broken(name: str):
        folder = folder_of("Llama", tmp_path / name)
        return folder, folder / "model.safetensors", load_file(folder / "model.safetensors")

    folder, file, weights = broken("missing")
    del weights["model.layers.0.mlp.down_proj.weight"]
    save_file(weights, file, {"format": "pt"})
    refused = {folder: r"lacks 1 of the weights .* model\.layers\.0\.mlp\.down_proj\.weight for one"}
    folder, file, _ = broken("truncated")
    file.write_bytes(file.read_bytes()[:-100])
    refused[folder] = r"the model in .*truncated cannot be read: .*Is the folder complete\?"
    folder, file, weights = broken("not finite")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, file, {"format": "pt"})
    refused[folder] = r"model\.norm\.weight in .* not finite"
    folder, file, weights = broken("another shape")
    weights["model.layers.0.mlp.down_proj.weight"] = torch.zeros(32, 56)
    save_file(weights, file, {"format": "pt"})
    refused[folder] = "cannot be read"
    folder, _, _ = broken("configuration")
    (folder / "config.json").write_text("{ broken")
    refused[folder] = "cannot be read"
    folder, _, _ = broken("unknown kind")
    (folder / "config.json").write_text('{"model_type": "gpt2x"}')
    refused[folder] = "gpt2x.*Is the folder complete"
    for folder, message in refused.items():
        with pytest.raises(ConfigError, match=message):
            Policy.load(folder, ModelConfig(dtype="float32"), LoraConfig(), seed=0)
