"""Answers that are longer than rows, micro-batches and prompts: sampled, judged, trained on, resumed; small weights.

The runs of `make test` have answers of some hundred tokens and rows of 48; those of `make test-all` prompts of 2k and
answers of 16k tokens.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.engines import random_b, spec
from support.evaluations import Counting
from support.evaluations import rows as sample_rows
from support.evaluations import toy as evaluation_of
from support.policies import ROOT, make_policy
from support.runs import rows, stopped, toy, without_clock
from support.training import SGD_LIKE

from rlora.evaluation.held_out import EvaluationConfig
from rlora.evaluation.run import evaluate_benchmarks
from rlora.loop import run
from rlora.lora.config import LoraConfig
from rlora.model.sources import ModelConfig, make_toy
from rlora.sampler.base import SamplerConfig, is_vllm_installed
from rlora.sampler.build import build_sampler
from rlora.train.batching import BatchConfig, Row, stack
from rlora.train.losses import LossConfig
from rlora.train.policy import Policy
from rlora.train.trainer import Trainer
from rlora.types import Group, Problem, Prompt, Rollout, SampleRequest, SamplingParams, Verdict, VerdictKind

PROMPT, ANSWER = 2048, 16384


def make_talkative(folder: Path, *, ends: float | None, positions: int = 512, **sizes) -> ModelConfig:
    """Write the toy model with another liking for its end token: 4.5 ends it after some tokens, 0 hardly ever, None
    never. For the last the first number of every hidden state stays large, and only the end token looks at it.
    """
    make_toy(folder, **sizes)
    weights = load_file(folder / "model.safetensors")
    embeddings, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    if ends is None:
        embeddings[:, 0], head[:, 0], head[0, 0], weights["model.norm.weight"][0] = 4, 0, -40, 1
        for name in weights:
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weights[name][0] = 0
    else:
        shared = embeddings.mean(0)
        head[0] -= (4.5 - ends) / 64 * shared * 8 / shared.norm()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}))
    return ModelConfig(name=str(folder), dtype="float32")


def rewarded_by_number(prompt: tuple[int, ...], completions) -> Group:
    """Return a group whose first completion is rewarded, whatever it says."""
    problem = Problem(id="long", question="", answer="", source="test")
    return Group(
        prompt=Prompt(problem=problem, text="", token_ids=prompt),
        rollouts=tuple(
            Rollout(
                completion=completion,
                verdict=Verdict(kind=VerdictKind.WRONG if number else VerdictKind.CORRECT, reward=float(number == 0)),
            )
            for number, completion in enumerate(completions)
        ),
    )


@pytest.mark.loop
def test_a_run_on_long_answers_goes_on_exactly_with_layers_computed_again_or_not(tmp_path) -> None:
    """Answers of up to 200 tokens in rows of 48 and micro-batches of 64 positions."""
    model = make_talkative(tmp_path / "model", ends=1.5)
    changes = {
        "model": model,
        "num_steps": 2,
        "problems_per_step": 4,
        "samples_per_problem": 16,
        "sampling": SamplingParams(max_tokens=200),
        "evaluation": EvaluationConfig(num_problems=2),
        "batch": BatchConfig(tokens_per_row=48, tokens_per_micro_batch=64),
    }
    straight = run(toy(tmp_path / "straight", **changes))
    metrics = rows(straight)
    assert max(row["rollout/max_tokens"] for row in metrics) > 64
    assert any(row["optimizer/is_empty_batch"] == 0 for row in metrics)
    again = replace(changes["batch"], recompute=True)
    config = toy(tmp_path / "stopped", **(changes | {"batch": again}))
    stopped(config, after=1)
    run(config)
    for row in rows(tmp_path / "stopped"):
        assert row["batch/recomputed_share"] == float(row["batch/num_positions"] > 0)
    drop = ("batch/recomputed_share",)
    found, expected = ([without_clock(row) for row in rows(tmp_path / name)] for name in ("stopped", "straight"))
    assert [{k: v for k, v in row.items() if k not in drop} for row in found] == [
        {k: v for k, v in row.items() if k not in drop} for row in expected
    ]
    for name in ("adapter/adapter_model.safetensors", "checkpoints/step-000002/tensors.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (straight / name).read_bytes()


def train_on(policy: Policy, group: Group, *, above: int | None, tokens: int) -> tuple[torch.Tensor, dict[str, float]]:
    policy.flat.zero_grad()
    policy.version, policy.base.recompute_above = 0, above
    before = policy.flat.theta_D.clone()
    trainer = Trainer(policy, SGD_LIKE, LossConfig(), BatchConfig(tokens_per_micro_batch=tokens))
    advantages = [[1.0] + [-1.0] * (len(group.rollouts) - 1)]
    metrics = trainer.step([group], advantages)
    grad = policy.flat.grad_D.clone()
    policy.flat.theta_D.copy_(before)
    return grad, metrics


@pytest.mark.long
def test_answers_of_16k_tokens_are_trained_on_as_they_were_sampled(tmp_path) -> None:
    model = make_talkative(tmp_path / "model", ends=None, positions=PROMPT + ANSWER)
    policy = make_policy(tmp_path / "model", lora=LoraConfig())
    sampler = build_sampler(
        spec(policy, tmp_path / "model", model, SamplerConfig(kind="torch"), max_length=PROMPT + ANSWER)
    )
    sampler.load([policy.snapshot()])
    prompt = tuple(2 + index % 40 for index in range(PROMPT))
    request = SampleRequest(token_ids=prompt, num_samples=2, key=("long",), policy=0)
    (completions,) = sampler.sample([request], SamplingParams(max_tokens=ANSWER), seed=0)
    assert [len(completion.token_ids) for completion in completions] == [ANSWER, ANSWER]
    group = rewarded_by_number(prompt, completions)
    again, metrics = train_on(policy, group, above=4096, tokens=4096)
    assert metrics["batch/recomputed_share"] == 1.0
    assert metrics["batch/num_out_of_memory"] == 0
    assert metrics["agreement/max_abs_logprob_difference"] < 1e-3
    plain, _ = train_on(policy, group, above=None, tokens=4096)
    assert torch.equal(again, plain)


@pytest.mark.long
@pytest.mark.vllm
@pytest.mark.skipif(not is_vllm_installed(), reason="vLLM is not installed")
@pytest.mark.filterwarnings("ignore")
def test_vllm_answers_of_16k_tokens_agree_with_the_trainer(tmp_path) -> None:
    from rlora.sampler.vllm.engine import VllmSampler

    sizes = {"head_dim": 64}
    model = make_talkative(tmp_path / "model", ends=None, positions=PROMPT + ANSWER, **sizes)
    model = replace(model, dtype="bfloat16")
    policy = Policy.load(tmp_path / "model", model, LoraConfig(), seed=0)
    random_b(policy, scale=1e-2, seed=1)
    config = SamplerConfig(kind="vllm", kv_cache_gb=0.25, max_num_seqs=8)
    sampler = VllmSampler(spec(policy, tmp_path / "model", model, config, max_length=PROMPT + ANSWER))
    try:
        sampler.load([policy.snapshot()])
        prompt = tuple(2 + index % 40 for index in range(PROMPT))
        request = SampleRequest(token_ids=prompt, num_samples=2, key=("long",), policy=0)
        (completions,) = sampler.sample([request], SamplingParams(max_tokens=ANSWER), seed=0)
        assert [len(completion.token_ids) for completion in completions] == [ANSWER, ANSWER]
        policy.base.recompute_above = 0
        with torch.no_grad():
            for completion in completions:
                row = Row(prompt=prompt, completions=(completion,), advantages=(1.0,))
                trainer_N = policy.score(stack([row])).logprobs_N
                assert float((trainer_N - torch.tensor(completion.logprobs)).abs().mean()) < 0.02
    finally:
        sampler.close()


@pytest.mark.long
@pytest.mark.data
def test_aime_with_16k_tokens_goes_on_in_the_middle_of_its_answers(tmp_path, data_dir) -> None:
    make_talkative(tmp_path / "model", ends=None, positions=PROMPT + ANSWER)
    changes = {
        "model": str(tmp_path / "model"),
        "benchmark": "aime2024",
        "data_dir": str(data_dir),
        "max_tokens": ANSWER,
        "limit": 2,
        "samples": 1,
        "completions_per_batch": 1,
        "sampler": SamplerConfig(kind="torch", max_prompt_tokens=PROMPT),
    }
    straight = evaluate_benchmarks(evaluation_of(tmp_path / "straight", **changes))
    config = evaluation_of(tmp_path / "stopped", **changes)
    with pytest.raises(KeyboardInterrupt):
        evaluate_benchmarks(config, make_sampler=lambda spec: Counting(build_sampler(spec), calls=1))
    name = "samples-aime2024-base.jsonl"
    kept = sample_rows(tmp_path / "stopped" / name)
    assert [row["num_tokens"] for row in kept] == [ANSWER]
    again = evaluate_benchmarks(config)
    assert again["benchmarks"] == straight["benchmarks"]
    assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


PEAKS = """
import sys, tempfile, torch, transformers
from pathlib import Path
from rlora.train.batching import made_up_row, stack
from rlora.lora.config import LoraConfig
from rlora.system.memory import give_back_freed_memory, keep_freed_memory
from rlora.model.sources import ModelConfig
from rlora.train.policy import Policy

def status(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

torch.set_num_threads(1)
num_completions, *lengths = map(int, sys.argv[1:])
folder = Path(tempfile.mkdtemp())
sizes = dict(hidden_size=128, intermediate_size=352, num_hidden_layers=8, num_attention_heads=2)
config = transformers.LlamaConfig(vocab_size=512, num_key_value_heads=2, tie_word_embeddings=True, **sizes)
transformers.LlamaForCausalLM(config).save_pretrained(folder)
policy = Policy.load(folder, ModelConfig(dtype="float32", compile="off"), LoraConfig(), seed=0)
policy.base.recompute_above = 0
keep_freed_memory()
for length in lengths:
    batch = stack([made_up_row(128, (length - 128) // num_completions + 1, num_completions=num_completions)])
    give_back_freed_memory()
    open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts again
    before = status("VmRSS")
    policy.score(batch).logprobs_N.sum().backward()
    print((status("VmHWM") - before) / batch.num_positions)
"""


def peaks(num_completions: int, *lengths: int) -> list[float]:
    """Return the peak memory a position of a row of each length, layers computed again."""
    command = [sys.executable, "-c", PEAKS, str(num_completions), *map(str, lengths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    found = [float(line) for line in done.stdout.split()]
    print(f"{num_completions} completions, {lengths} positions: {[round(peak / 1024, 1) for peak in found]} KiB each")
    return found


@pytest.mark.loop
@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark as Linux keeps it")
@pytest.mark.parametrize("num_completions", [1, 4])
def test_memory_is_linear_in_a_rows_length(num_completions) -> None:
    short, long = peaks(num_completions, 1024, 4096)
    assert long <= 1.6 * short


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark as Linux keeps it")
@pytest.mark.parametrize("num_completions", [1, 4])
def test_memory_is_linear_up_to_16k_positions(num_completions) -> None:
    short, long = peaks(num_completions, 4096, 16384)
    assert long <= 1.6 * short
