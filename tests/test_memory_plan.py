"""Where a GPU's memory goes: the plan of each model and card, vLLM's own check of free memory, and measured peaks."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import transformers
from support.policies import ROOT
from support.runs import toy

from rlora import assemble
from rlora.advice import plan_on_paper, workload_of
from rlora.commands.cli import main
from rlora.errors import ConfigError, EngineStartError, OutOfMemoryError
from rlora.lora.config import LoraConfig
from rlora.model.sources import TOY, ModelConfig, num_weights
from rlora.run_config import RunConfig
from rlora.sampler.base import EngineSpec, SamplerConfig, is_vllm_installed
from rlora.sampler.vllm.engine import VllmSampler
from rlora.sampler.vllm.options import engine_options, graph_sizes
from rlora.train.batch_memory import BatchMemory, DecoderSizes, expected_batch_memory
from rlora.train.card import GIB, Card
from rlora.train.memory_plan import MemoryPlan, plan_evaluation
from rlora.types import SamplingParams

QWEN3 = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960}
SHAPES = {
    "qwen3-1.7b": transformers.Qwen3Config(
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        tie_word_embeddings=True,
        **QWEN3,
    ),
    "qwen3-8b": transformers.Qwen3Config(
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        tie_word_embeddings=False,
        **QWEN3,
    ),
    "llama-3.1-8b": transformers.LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=131072,
        tie_word_embeddings=False,
    ),
}
WEIGHTS = {"qwen3-1.7b": 1_720_574_976, "qwen3-8b": 8_190_735_360, "llama-3.1-8b": 8_030_261_248}
DOES_NOT_FIT = None

# model, longest completion, GB of the card -> GiB of micro-batches and cache, positions of a micro-batch, rows computed
# again above, tokens in the cache, completions at once
PLANS = {
    ("qwen3-1.7b", 1024, 24): (6.7, 7.4, 1708, 1708, 68978, 128),
    ("qwen3-1.7b", 1024, 48): (15.8, 17.4, 5265, None, 162918, 312),
    ("qwen3-1.7b", 1024, 80): (31.0, 34.1, 11189, None, 319299, 616),
    ("qwen3-1.7b", 1024, 141): (45.0, 76.9, 16384, None, 719792, 1024),
    ("qwen3-1.7b", 8192, 24): (6.7, 7.4, 1708, 1708, 68978, 24),
    ("qwen3-1.7b", 8192, 48): (15.8, 17.4, 5265, 5265, 162918, 64),
    ("qwen3-1.7b", 8192, 80): (31.0, 34.1, 11189, None, 319299, 136),
    ("qwen3-1.7b", 8192, 141): (45.0, 76.9, 16384, None, 719792, 256),
    ("qwen3-8b", 1024, 24): DOES_NOT_FIT,
    ("qwen3-8b", 1024, 48): (4.8, 5.3, 6054, 0, 38853, 72),
    ("qwen3-8b", 1024, 80): (20.0, 22.0, 2804, None, 160517, 312),
    ("qwen3-8b", 1024, 141): (46.5, 51.1, 6970, None, 372318, 720),
    ("qwen3-8b", 8192, 24): DOES_NOT_FIT,
    ("qwen3-8b", 8192, 48): (7.4, 2.5, 9216, 0, 18564, 16),
    ("qwen3-8b", 8192, 80): (20.0, 22.0, 2804, 2804, 160517, 64),
    ("qwen3-8b", 8192, 141): (46.5, 51.1, 6970, 6970, 372318, 160),
    ("llama-3.1-8b", 1024, 24): DOES_NOT_FIT,
    ("llama-3.1-8b", 1024, 48): (5.1, 5.6, 6748, 0, 46162, 88),
    ("llama-3.1-8b", 1024, 80): (20.3, 22.3, 3340, None, 183036, 352),
    ("llama-3.1-8b", 1024, 141): (46.8, 51.4, 8010, None, 421303, 816),
    ("llama-3.1-8b", 8192, 24): DOES_NOT_FIT,
    ("llama-3.1-8b", 8192, 48): (7.0, 3.6, 9216, 0, 29279, 16),
    ("llama-3.1-8b", 8192, 80): (20.3, 22.3, 3340, 3340, 183036, 72),
    ("llama-3.1-8b", 8192, 141): (46.8, 51.4, 8010, 8010, 421303, 176),
}


@pytest.fixture(scope="module")
def models():
    made = {}
    for name, config in SHAPES.items():
        with torch.device("meta"):
            made[name] = transformers.AutoModelForCausalLM.from_config(config)
    return made


def config_for(max_tokens: int, **changes) -> RunConfig:
    """Return a run of the recipes' size on a GPU: 64 problems x 16 samples, micro-batches of at most 16,384 tokens."""
    config = RunConfig(
        run_dir="",
        problems_per_step=64,
        samples_per_problem=16,
        sampling=SamplingParams(max_tokens=max_tokens),
        sampler=SamplerConfig(kv_cache_gb=0, max_num_seqs=0),
    )
    return replace(config, batch=replace(config.batch, tokens_per_micro_batch=16384), **changes)


def plan(models, name: str, max_tokens: int, gigabytes: float, **changes) -> MemoryPlan:
    return plan_on_paper(config_for(max_tokens, **changes), models[name], Card.named(gigabytes))


@pytest.mark.unit
def test_the_models_have_their_known_numbers_of_weights(models) -> None:
    assert {name: num_weights(model) for name, model in models.items()} == WEIGHTS


@pytest.mark.unit
@pytest.mark.parametrize("case", PLANS, ids=lambda case: "-".join(map(str, case)))
def test_plan_of_each_model_and_card(models, case) -> None:
    name, max_tokens, gigabytes = case
    if PLANS[case] is DOES_NOT_FIT:
        with pytest.raises(
            OutOfMemoryError, match=r"GiB of GPU memory are free beside the trainer's base.*Take a smaller"
        ):
            plan(models, name, max_tokens, gigabytes)
        return
    found = plan(models, name, max_tokens, gigabytes)
    sizes = (round(found.batches / GIB, 1), round(found.cache / GIB, 1))
    assert (*sizes, found.tokens, found.recompute_above, found.cache_tokens, found.num_sequences) == PLANS[case]
    assert found.peak + found.reserved <= found.total
    assert found.cache_tokens >= found.row_tokens  # a whole completion with its prompt
    assert "in all" in "\n".join(found.lines())


@pytest.mark.vllm
@pytest.mark.skipif(not is_vllm_installed(), reason="vLLM is not installed")
@pytest.mark.parametrize("gigabytes", [24, 48, 80, 141])
@pytest.mark.parametrize("name", SHAPES)
def test_vllms_own_check_of_free_memory_lets_the_engine_start(name, gigabytes) -> None:
    """With the trainer's base on the card, vLLM's default share of 0.92 was not free on most of these."""
    from vllm.v1.worker.utils import request_memory

    empty = Card.named(gigabytes)
    card = replace(empty, free=empty.free - 2 * WEIGHTS[name])
    snapshot = SimpleNamespace(total_memory=card.total, free_memory=card.free, device_="cuda:0")
    asked = request_memory(snapshot, SimpleNamespace(gpu_memory_utilization=card.engine_share))
    assert 0.97 * card.free < asked <= card.free
    if gigabytes == 24:
        with pytest.raises(ValueError, match="less than desired GPU memory utilization"):
            request_memory(snapshot, SimpleNamespace(gpu_memory_utilization=0.92))


@pytest.mark.unit
def test_a_row_that_can_never_fit_is_refused_with_what_to_lower(models) -> None:
    with pytest.raises(OutOfMemoryError, match=r"a row of 132,096 tokens .* hold 29,434 positions even with layers"):
        plan(models, "qwen3-8b", 131072, 80)


@pytest.mark.unit
def test_a_shared_base_starts_8b_on_24_gb(models) -> None:
    config, model, empty = config_for(1024), models["qwen3-8b"], Card.named(24)
    memory = [on_paper(DecoderSizes.of(model.config), is_recomputed=again) for again in (False, True)]
    bytes_of_base = 2 * num_weights(model)
    found = assemble.plan_memory(
        replace(empty, free=empty.free - bytes_of_base),
        DecoderSizes.of(model.config),
        workload_of(config),
        batch_memory=(memory[0], memory[1]),
        weight_bytes=bytes_of_base,
        itemsize=2,
        is_shared=True,
    )
    assert found.engine_weights == 0
    assert found.batches + found.cache > found.total - found.taken  # both have it, by turns
    assert found.peak + found.reserved <= found.total


@pytest.mark.unit
@pytest.mark.parametrize("name", SHAPES)
def test_an_engine_that_shares_its_base_keeps_the_sizes_that_it_was_started_with(models, name) -> None:
    """Its cache was sized on paper; when the trainer's part is measured the graphs are there and a little else."""
    changes = {"sampler": SamplerConfig(kv_cache_gb=0, max_num_seqs=0, share_base="on")}
    for gigabytes in (24, 48, 80):
        started = plan(models, name, 1024, gigabytes, **changes)
        config, sizes, card = config_for(1024, **changes), DecoderSizes.of(SHAPES[name]), Card.named(gigabytes)
        taken = 2 * WEIGHTS[name] + int(0.9 * GIB)
        found = assemble.plan_memory(
            replace(card, free=card.free - taken + card.total // 100),
            sizes,
            replace(workload_of(config), **started.engine),
            batch_memory=(on_paper(sizes), on_paper(sizes, is_recomputed=True)),
            weight_bytes=2 * WEIGHTS[name],
            itemsize=2,
            is_shared=True,
            has_started=True,
        )
        assert found.engine == started.engine
        assert found.tokens == pytest.approx(started.tokens, rel=0.1)


def on_paper(sizes: DecoderSizes, **changes) -> BatchMemory:
    options = {"itemsize": 2, "chunk_tokens": 1024, "score_block": 0, "is_compiled": False, "is_recomputed": False}
    return expected_batch_memory(sizes, **(options | changes))


@pytest.mark.unit
@pytest.mark.parametrize(("is_compiled", "measured"), [(False, 31.2), (True, 24.2)])
def test_the_one_point_measured_on_a_gpu(is_compiled, measured) -> None:
    """Qwen3-1.7B's shape, rank 1, 8 rows of 1,294 positions on an H100 (docs/log.md), with attention by a dense mask,
    which kept keys and values once for each query head.
    """
    memory = on_paper(DecoderSizes.of(SHAPES["qwen3-1.7b"]), is_compiled=is_compiled)
    assert memory.of(8 * 1294) / GIB == pytest.approx(measured, rel=0.15)


@pytest.mark.unit
def test_positions_that_fit_are_those_whose_memory_is_there() -> None:
    memory = BatchMemory(kept=1000.0, temporary=200.0, logits=50_000)
    for num_bytes in (10, 60_000, 150_000, 300_000, 10_000_000):
        positions = memory.positions(num_bytes)
        assert memory.of(positions) <= num_bytes or positions == 0
        assert memory.of(positions + 2) > num_bytes


@pytest.mark.unit
def test_memory_is_measured_without_what_pytorch_holds_unused(monkeypatch) -> None:
    emptied = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: ((20 if emptied else 12) * GIB, 24 * GIB))
    card = Card.present()
    assert (card.free, card.total) == (20 * GIB, 24 * GIB)
    assert card.engine_share == pytest.approx(0.98 * 20 / 24)


@pytest.mark.unit
def test_a_cache_sized_by_the_gpu_needs_one() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match=r"sampler\.kv_cache_gb is 0, .* there is no GPU; try 1"):
        Card.present()


@pytest.mark.unit
@pytest.mark.parametrize("gigabytes", [0, -8, float("nan")])
def test_a_card_has_a_size(gigabytes) -> None:
    with pytest.raises(ConfigError, match=r"--gpu is .*; it must be a card's memory in GB"):
        Card.named(gigabytes)


@pytest.fixture
def gpu_of_24_gb(monkeypatch):
    """Pretend that there is a GPU of 24 GiB with 20 free; nothing is computed on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20 * GIB, 24 * GIB))


def spec(**changes) -> EngineSpec:
    options = {
        "folder": ROOT,
        "model": ModelConfig(),
        "lora": LoraConfig(),
        "config": SamplerConfig(kind="vllm", kv_cache_gb=0, max_num_seqs=0),
        "end_token_ids": (0,),
        "target_modules": ("q_proj",),
        "max_length": 2048,
    }
    return EngineSpec(**(options | changes))


@pytest.mark.unit
def test_the_engine_is_given_a_share_that_is_free_and_the_plans_cache(gpu_of_24_gb) -> None:
    options = engine_options(spec(cache_bytes=7 * GIB, num_sequences=104))
    assert options["gpu_memory_utilization"] == pytest.approx(0.98 * 20 / 24)
    assert (options["kv_cache_memory_bytes"], options["max_num_seqs"]) == (7 * GIB, 104)
    assert (options["max_num_batched_tokens"], options["enable_chunked_prefill"]) == (4096, False)
    assert options["compilation_config"]["cudagraph_capture_sizes"] == graph_sizes(104)


@pytest.mark.unit
def test_long_sequences_are_not_prefilled_at_once_on_a_gpu(gpu_of_24_gb) -> None:
    """32k tokens in one prefill would take 3.5 GiB of activations at 8B; prompts are of 2k."""
    options = engine_options(spec(max_length=34816))
    assert (options["max_num_batched_tokens"], options["enable_chunked_prefill"]) == (8192, True)


@pytest.mark.unit
@pytest.mark.parametrize("num_sequences", [1, 5, 8, 100, 256, 1024])
def test_few_graphs_are_recorded_and_the_largest_is_for_all_sequences(num_sequences) -> None:
    sizes = graph_sizes(num_sequences)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == num_sequences
    assert len(sizes) <= 24
    assert all(large <= 2 * small for small, large in pairwise(sizes))


@pytest.mark.vllm
@pytest.mark.skipif(not is_vllm_installed(), reason="vLLM is not installed")
@pytest.mark.parametrize(
    "error",
    [ValueError("Free memory on device cuda:0 (19.7/23.5 GiB) on startup is less"), torch.OutOfMemoryError("CUDA")],
)
def test_an_engine_that_does_not_start_says_what_to_change(monkeypatch, error) -> None:
    import vllm

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(vllm, "LLM", refuse)
    with pytest.raises(EngineStartError, match=rf"vLLM did not start \({type(error).__name__}: .*lower --sampler"):
        VllmSampler(spec(config=SamplerConfig(kind="vllm")))


@pytest.mark.unit
def test_an_evaluation_gives_the_cache_what_the_models_leave(models) -> None:
    card, sizes = Card.named(80), DecoderSizes.of(SHAPES["qwen3-8b"])
    cache, sequences = plan_evaluation(
        replace(card, free=card.free - 2 * WEIGHTS["qwen3-8b"]),
        sizes,
        max_length=34816,
        num_sequences=0,
        num_completions=512,
        weight_bytes=2 * WEIGHTS["qwen3-8b"],
    )
    assert 41 < cache / GIB < 44
    assert sequences == 16
    with pytest.raises(OutOfMemoryError, match="Take a smaller model"):
        plan_evaluation(
            Card(total=24 * GIB, free=7 * GIB),
            sizes,
            max_length=4096,
            num_sequences=0,
            num_completions=8,
            weight_bytes=2 * WEIGHTS["qwen3-8b"],
        )


@pytest.mark.unit
def test_check_prints_the_plan_from_config_json_alone(tmp_path, capsys) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPES["qwen3-8b"].to_dict()))
    main(["check", "--gpu", "48", "--model", str(tmp_path)])
    said = capsys.readouterr().out
    assert "Memory of a GPU of 48 GB, in GiB (calculated):" in said
    assert "15.3  the engine's base" in said
    assert "KV cache of 38,853 tokens, 72 completions at once" in said
    with pytest.raises(SystemExit) as ended:
        main(["check", "recipes/deepmath.py", "--gpu", "24", "--model.name", str(tmp_path), "--sampler.kind", "auto"])
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "deepmath: 200 iterations" in said
    assert "does not fit: 7.6 of 23.5 GiB of GPU memory are free" in said


@pytest.mark.loop
def test_a_run_on_a_gpu_divides_its_memory(toy_policy, toy_dir, gpu_of_24_gb, monkeypatch, tmp_path) -> None:
    config = toy(tmp_path / "run", sampler=SamplerConfig(kind="vllm", kv_cache_gb=0, max_num_seqs=0))
    found = assemble.plan_of(config, toy_dir, toy_policy)
    assert isinstance(found, MemoryPlan)
    assert found.tokens == config.batch.tokens_per_micro_batch
    assert found.recompute_above is None
    token = DecoderSizes.of(toy_policy.model.config).cache_bytes(4)
    most = config.problems_per_step * config.samples_per_problem
    assert found.cache == token * most * workload_of(config).max_length  # all that a step could need
    assert "GPU memory: 24.0 GiB, of which micro-batches get" in found.summary()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(0.9 * GIB), 24 * GIB))
    with pytest.raises(OutOfMemoryError, match=r"0\.9 of 24\.0 GiB"):
        assemble.plan_of(config, toy_dir, toy_policy)


MEASURED = """
import sys, torch
from rlora.train.batch_memory import DecoderSizes, expected_batch_memory
from rlora.train.batching import made_up_row, stack
from rlora.model.logprobs import chunk_tokens
from rlora.lora.config import LoraConfig
from rlora.system.memory import give_back_freed_memory, keep_freed_memory
from rlora.model.sources import ModelConfig, model_dir
from rlora.train.policy import Policy
from rlora.train.token_budget import measured_batch_memory
from rlora.train.warm_up import warm_up

def status(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

torch.set_num_threads(1)
name, dtype, compile_, again, num_rows = sys.argv[1:]
config = ModelConfig(name=name, dtype=dtype, compile=compile_)
policy = Policy.load(model_dir(config), config, LoraConfig(), seed=0)
is_recomputed = again == "again"
expected = expected_batch_memory(
    DecoderSizes.of(policy.model.config), itemsize=policy.dtype.itemsize, chunk_tokens=chunk_tokens(policy.device),
    score_block=192 if policy.base.has_materialised_scores else 0, is_compiled=policy.base.products.is_compiled,
    is_recomputed=is_recomputed,
)
warm_up(policy)
keep_freed_memory()
measured = measured_batch_memory(policy, row_tokens=512)[is_recomputed]
policy.base.recompute_above = 0 if is_recomputed else None
policy.score(stack([made_up_row(8, 8)])).logprobs_N.sum().backward()
batch = stack([made_up_row(256, 257)] * int(num_rows))
give_back_freed_memory()
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts again
before = status("VmRSS")
policy.score(batch).logprobs_N.sum().backward()
print(expected.of(batch.num_positions), measured.of(batch.num_positions), status("VmHWM") - before)
"""


@pytest.mark.loop
@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark as Linux keeps it")
@pytest.mark.parametrize(
    ("name", "dtype", "compile_", "again", "num_rows"),
    [
        (TOY, "float32", "off", "keep", 16),
        (TOY, "float32", "off", "again", 16),
        ("bundled", "bfloat16", "auto", "keep", 4),
        pytest.param("bundled", "bfloat16", "auto", "again", 8, marks=pytest.mark.long),
    ],
)
def test_the_peak_on_paper_is_what_a_micro_batch_takes(name, dtype, compile_, again, num_rows) -> None:
    command = [sys.executable, "-c", MEASURED, name, dtype, compile_, again, str(num_rows)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    on_paper_, measured, taken = map(int, done.stdout.split())
    print(f"{name} {again}: {on_paper_ / 2**20:.0f} and {measured / 2**20:.0f} MiB, {taken / 2**20:.0f} taken")
    assert on_paper_ == pytest.approx(taken, rel=0.15)
    assert measured == pytest.approx(taken, rel=0.2)
