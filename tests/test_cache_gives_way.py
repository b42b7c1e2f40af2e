"""The KV cache gives its memory to the trainer and gets it back: options, order, and what is refused in between.

vLLM is a recording fake here: what sleeping does to the memory of a GPU is not shown by any of these.
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from support.engines import Around, random_b, spec
from support.fused_engines import change, made_up_engine
from support.policies import TOY_MODEL
from support.runs import toy
from torch import nn

from rlora import assemble as assembling
from rlora.assemble import assemble, load_problems
from rlora.errors import ConfigError, EngineError, LayoutError, SamplerError
from rlora.loop import run
from rlora.lora.config import LoraConfig
from rlora.model.loading import load_model
from rlora.model.sources import ModelConfig, empty_model
from rlora.rewards import open_judge
from rlora.sampler.base import EngineSpec, SamplerConfig
from rlora.sampler.build import build_sampler
from rlora.sampler.capabilities import check_shareable
from rlora.sampler.torch_sampler import TorchSampler
from rlora.sampler.vllm.cache_memory import model_of, only_the_cache_sleeps, zero_cache
from rlora.sampler.vllm.engine import VllmSampler
from rlora.sampler.vllm.shared_base import base_views
from rlora.train.card import GIB, Card
from rlora.train.policy import Policy
from rlora.train.trainer import Trainer
from rlora.types import Completion, SampleRequest, SamplingParams
from rlora.verify import Verifier

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")


class RecordingLlm:
    """In the place of `vllm.LLM`: writes down what it is asked for, and completes every prompt with one token."""

    made: ClassVar[list[Any]] = []

    def __init__(self, model: str, **options: Any):
        self.options, self.calls, self.loras = options, [], []
        self.is_sleeping, self.wakes, self.resets, self.fails_in = False, True, True, ""
        self.kv_caches = [torch.full((3, 2), float("nan"))]
        self.engine: nn.Module | None = None
        core = SimpleNamespace(shutdown=lambda: self._note("shutdown"))
        self.llm_engine = SimpleNamespace(
            add_lora=self._add_lora,
            remove_lora=lambda number: self._note(f"remove_lora {number}"),
            list_loras=lambda: self.loras,
            is_sleeping=lambda: self.is_sleeping,
            engine_core=core,
        )
        RecordingLlm.made.append(self)

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if self.fails_in and call.startswith(self.fails_in):
            raise RuntimeError("CUDA error: out of memory")

    def _add_lora(self, request: Any) -> bool:
        self._note(f"add_lora {request.lora_name} {request.lora_int_id}")
        return True

    def sleep(self, level: int) -> None:
        self._note(f"sleep {level}")
        self.is_sleeping = True

    def wake_up(self) -> None:
        self._note("wake_up")
        self.is_sleeping = not self.wakes

    def reset_prefix_cache(self) -> bool:
        self._note("reset_prefix_cache")
        return self.resets

    def collective_rpc(self, function: Any) -> list[Any]:
        self._note(f"rpc {function.__name__}")
        runner = SimpleNamespace(get_model=lambda: self.engine, kv_caches=self.kv_caches)
        return [function(SimpleNamespace(model_runner=runner))]

    def generate(self, prompts: Sequence[Any], params: Any, *, lora_request: Any, use_tqdm: bool) -> list[Any]:
        names = sorted({"base" if request is None else request.lora_name for request in lora_request})
        self._note(f"generate {' '.join(names)}")
        logprobs = [{0: SimpleNamespace(logprob=-1.0)}]
        sample = SimpleNamespace(token_ids=[0], finish_reason="stop", stop_reason=0, logprobs=logprobs, text="")
        return [SimpleNamespace(outputs=[sample] * params[0].n, **prompt) for prompt in prompts]


class FileReader:
    """In the place of vllm's LoRAModel, which is never made here."""

    @classmethod
    def from_local_checkpoint(cls, *arguments: Any, **options: Any) -> Any:
        raise AssertionError("no adapter is read")


class GpuWorker:
    """In the place of vLLM's worker: each tag has a pool of its own."""

    def _maybe_get_memory_pool_context(self, tag: str) -> Any:
        return f"pool of {tag}"


@pytest.fixture
def fake_vllm(monkeypatch):
    """Let `import vllm` give the recording fake, on a machine that seems to have a GPU."""
    RecordingLlm.made.clear()
    parts: dict[str, dict[str, Any]] = {
        "vllm": {"LLM": RecordingLlm, "SamplingParams": lambda **fields: SimpleNamespace(**fields)},
        "vllm.lora": {},
        "vllm.lora.request": {
            "LoRARequest": lambda name, number, path: SimpleNamespace(
                lora_name=name, lora_int_id=number, lora_path=path
            )
        },
        "vllm.lora.lora_model": {"LoRAModel": type("LoRAModel", (FileReader,), {})},
        "vllm.v1": {},
        "vllm.v1.worker": {},
        "vllm.v1.worker.gpu_worker": {"Worker": type("Worker", (GpuWorker,), {})},
    }
    for name, attributes in parts.items():
        module = ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (70 * GIB, 80 * GIB))
    return parts


@pytest.fixture
def card(monkeypatch) -> None:
    """Pretend that there is a GPU's memory to be planned; nothing lies in it."""
    monkeypatch.setattr(Card, "present", classmethod(lambda cls: cls(total=80 * GIB, free=70 * GIB)))


@pytest.fixture
def started(fake_vllm, toy_dir):
    """Return a maker of (sampler, its fake engine, the policy to load)."""
    samplers = []

    def start(*, shares_base: bool = True):
        policy = Policy.load(toy_dir, TOY_MODEL, LoraConfig(), seed=0, device=CPU)
        wanted = spec(policy, toy_dir, TOY_MODEL, SamplerConfig(kind="vllm"))
        samplers.append(VllmSampler(replace(wanted, shares_base=shares_base)))
        return samplers[-1], RecordingLlm.made[-1], policy

    yield start
    for sampler in samplers:
        if hasattr(sampler, "_llm"):
            sampler.close()


def draw(sampler: VllmSampler, policy: int | None = 0) -> list[list[Completion]]:
    request = SampleRequest(token_ids=(1, 2), num_samples=1, key=("t",), policy=policy)
    return sampler.sample([request], SamplingParams(max_tokens=1), seed=0)


@pytest.mark.parametrize("shares_base", [True, False])
def test_only_an_engine_that_shares_its_weights_can_sleep(started, fake_vllm, shares_base) -> None:
    _, llm, _ = started(shares_base=shares_base)
    assert llm.options["enable_sleep_mode"] is shares_base
    worker_class = fake_vllm["vllm.v1.worker.gpu_worker"]["Worker"]
    assert getattr(worker_class, "rlora_installed", False) is shares_base


def test_an_engine_that_does_not_share_is_left_awake(started) -> None:
    sampler, llm, _ = started(shares_base=False)
    sampler.free_cache()
    sampler.restore_cache()
    assert llm.calls == []


def test_the_cache_is_given_away_taken_back_emptied_and_the_adapter_loaded_under_a_new_name_and_id(started) -> None:
    sampler, llm, policy = started()
    sampler.load([policy.snapshot()])
    draw(sampler)
    sampler.free_cache()
    assert llm.is_sleeping
    policy.version = 1
    sampler.restore_cache()
    sampler.load([policy.snapshot()])
    draw(sampler)
    assert llm.calls == [
        "add_lora rlora-v000000-1 1",
        "generate rlora-v000000-1",
        "sleep 1",
        "wake_up",
        "rpc zero_cache",
        "reset_prefix_cache",
        "add_lora rlora-v000001-2 2",
        "remove_lora 1",
        "generate rlora-v000001-2",
    ]
    assert torch.equal(llm.kv_caches[0], torch.zeros(3, 2))


def test_the_same_version_too_is_loaded_under_a_new_name(started) -> None:
    sampler, llm, policy = started()
    sampler.load([policy.snapshot()])
    sampler.free_cache()
    sampler.restore_cache()
    sampler.load([policy.snapshot()])
    assert [call for call in llm.calls if "add" in call] == ["add_lora rlora-v000000-1 1", "add_lora rlora-v000000-2 2"]


def test_nothing_is_sampled_or_loaded_without_a_cache_and_no_policy_before_it_was_loaded_again(started) -> None:
    sampler, llm, policy = started()
    sampler.load([policy.snapshot()])
    sampler.free_cache()
    for policy_index in (0, None):
        with pytest.raises(SamplerError, match="cache was freed; restore it before anything is sampled"):
            draw(sampler, policy_index)
    with pytest.raises(SamplerError, match="cache was freed; restore it before a policy is loaded"):
        sampler.load([policy.snapshot()])
    sampler.restore_cache()
    with pytest.raises(SamplerError, match="freed since the policy was loaded; load it again before sampling"):
        draw(sampler)
    draw(sampler, None)
    assert "generate base" in llm.calls


def give_and_take_back(sampler: VllmSampler) -> None:
    sampler.free_cache()
    sampler.restore_cache()


@pytest.mark.parametrize(
    ("call", "doing"),
    [("sleep", "freeing its cache")]
    + [(call, "taking its cache's memory back") for call in ("wake_up", "rpc", "reset_prefix_cache")],
)
def test_an_engine_that_fails_to_sleep_or_to_wake_is_an_engine_error(started, call, doing) -> None:
    sampler, llm, _ = started()
    llm.fails_in = call
    with pytest.raises(EngineError, match=f"vLLM failed while {doing}: RuntimeError: CUDA error: out of memory"):
        give_and_take_back(sampler)
    sampler.close()
    assert llm.calls[-2:] == ["wake_up", "shutdown"]


@pytest.mark.parametrize("part", ["wakes", "resets"])
def test_an_engine_that_stays_asleep_or_keeps_its_prefix_cache_is_an_engine_error(started, part) -> None:
    sampler, llm, _ = started()
    sampler.free_cache()
    setattr(llm, part, False)
    with pytest.raises(EngineError, match="did not wake up, or did not clear its prefix cache"):
        sampler.restore_cache()


def test_an_engine_that_is_closed_asleep_is_woken_first(started) -> None:
    sampler, llm, _ = started()
    sampler.free_cache()
    sampler.close()
    assert llm.calls == ["sleep 1", "wake_up", "shutdown"]


def test_base_weights_are_views_of_the_engines(started, toy_dir) -> None:
    sampler, llm, _ = started()
    llm.engine = made_up_engine(load_model(toy_dir, TOY_MODEL, CPU))
    weights = sampler.base_weights()
    fused = llm.engine.get_submodule("model.layers.0.self_attn.qkv_proj.base_layer").weight
    key = weights["model.layers.0.self_attn.k_proj.weight"]
    assert key.data_ptr() == fused[64].data_ptr()
    change(llm.engine, "model.norm", lambda weight: weight + 1)
    with pytest.raises(LayoutError, match=r"row 0 of model.norm.weight in the engine is not that of"):
        sampler.base_weights()


def test_all_but_the_cache_is_kept_out_of_the_pool() -> None:
    worker_class = type("Worker", (GpuWorker,), {})
    for _ in range(2):  # a second engine in the process finds it done
        only_the_cache_sleeps(worker_class)
        worker = worker_class()
        assert worker._maybe_get_memory_pool_context("kv_cache") == "pool of kv_cache"
        assert worker._maybe_get_memory_pool_context(tag="kv_cache") == "pool of kv_cache"
        for tag in ("weights", "runtime", "workspace"):
            assert isinstance(worker._maybe_get_memory_pool_context(tag), nullcontext)


def test_a_vllm_that_allocates_otherwise_is_refused() -> None:
    with pytest.raises(SamplerError, match="has no _maybe_get_memory_pool_context, so its cache cannot be freed alone"):
        only_the_cache_sleeps(type("Worker", (), {}))


def test_the_torch_sampler_has_nothing_to_give(toy_dir) -> None:
    policy = Policy.load(toy_dir, TOY_MODEL, LoraConfig(), seed=0)
    sampler = build_sampler(spec(policy, toy_dir, TOY_MODEL, SamplerConfig(kind="torch")))
    sampler.load([policy.snapshot()])
    request = SampleRequest(token_ids=(1, 2), num_samples=2, key=("t",), policy=0)
    before = sampler.sample([request], SamplingParams(max_tokens=4), seed=0)
    sampler.free_cache()
    sampler.restore_cache()
    assert sampler.sample([request], SamplingParams(max_tokens=4), seed=0) == before
    with pytest.raises(LayoutError, match="computes with a model of its own"):
        sampler.base_weights()


@pytest.mark.parametrize(
    ("lora", "kind", "has_gpu", "message"),
    [
        (None, "vllm", True, "method is 'full', which changes the weights that it trains"),
        (LoraConfig(), "torch", True, "the sampler is torch; only vLLM's weights are shared"),
        (LoraConfig(), "vllm", False, "there is no GPU: vLLM's CPU build packs its weights"),
    ],
)
def test_what_cannot_be_shared_is_refused_with_the_way_out(monkeypatch, lora, kind, has_gpu, message) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    for share_base in ("auto", "off"):
        check_shareable(lora, SamplerConfig(kind=kind, share_base=share_base))
    with pytest.raises(ConfigError, match=rf"{message}.*Take --sampler.share-base off"):
        check_shareable(lora, SamplerConfig(kind=kind, share_base="on"))


def test_a_run_asks_whether_its_base_can_be_shared(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_shareable(LoraConfig(), SamplerConfig(kind="vllm", share_base="on"))
    config = toy(tmp_path / "run")
    assert not config.sampler.shares_base
    with pytest.raises(ConfigError, match="only vLLM's weights are shared"):
        replace(config, sampler=replace(config.sampler, share_base="on")).check()


class Recording(Around):
    """The torch sampler beside weights that are laid out as vLLM's, writing down what it is asked for."""

    def __init__(self, engine_spec: EngineSpec, events: list[str], engine: nn.Module | None = None):
        self._sampler, self.spec, self.events, self._engine = TorchSampler(engine_spec), engine_spec, events, engine

    def load(self, snapshots) -> None:
        self.events.append(f"load {snapshots[0].version}")
        self._sampler.load(snapshots)

    def sample(self, requests, sampling, *, seed):
        self.events.append(f"sample {requests[0].key[0]} of {'base' if requests[0].policy is None else 'policy'}")
        return self._sampler.sample(requests, sampling, seed=seed)

    def base_weights(self):
        self.events.append("base_weights")
        assert self._engine is not None
        return base_views(self._engine, empty_model(self.spec.folder, self.spec.model), torch.float32)

    def free_cache(self) -> None:
        self.events.append("free")

    def restore_cache(self) -> None:
        self.events.append("restore")

    def close(self) -> None:
        self.events.append("closed")
        self._sampler.close()


def test_the_cache_is_freed_before_training_and_back_before_the_policy_is_loaded_and_proven(
    tmp_path, monkeypatch
) -> None:
    events: list[str] = []
    step = Trainer.step

    def noting(self, *arguments, **options):
        events.append("train")
        return step(self, *arguments, **options)

    monkeypatch.setattr(Trainer, "step", noting)
    config = toy(tmp_path / "run", num_steps=2)
    run(config, make_sampler=lambda engine_spec: Recording(engine_spec, events))
    of_training = [event for event in events if "evaluate" not in event]
    assert of_training[of_training.index("load 0") :][:14] == [
        "load 0",
        "sample canary of policy",
        "sample train of policy",
        "free",
        "train",
        "restore",
        "load 1",
        "sample canary of policy",
        "sample train of policy",
        "free",
        "train",
        "restore",
        "load 2",
        "sample canary of policy",
    ]
    assert events.count("free") == events.count("restore") == 2


def assembled(tmp_path, toy_dir, events, engine, **changes):
    config = toy(tmp_path / "run", model=TOY_MODEL, **changes)
    config = replace(config, sampler=replace(config.sampler, share_base="on"))
    specs: list[EngineSpec] = []

    def make(engine_spec: EngineSpec) -> Recording:
        specs.append(engine_spec)
        events.append("engine")
        return Recording(engine_spec, events, engine)

    with Verifier(config.verifier) as verifier:
        parts = assemble(config, toy_dir, load_problems(config).train, open_judge("number", verifier), make)
    return parts, specs


def test_a_shared_engine_is_started_first_and_the_trainer_computes_with_its_weights(
    card, tmp_path, toy_dir, capsys
) -> None:
    events: list[str] = []
    engine = made_up_engine(load_model(toy_dir, TOY_MODEL, CPU))
    parts, specs = assembled(tmp_path, toy_dir, events, engine)
    assert events == ["engine", "free", "base_weights", "restore"]
    assert specs[0].shares_base
    assert set(specs[0].target_modules) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    held = {parameter.untyped_storage().data_ptr() for parameter in engine.parameters()}
    frozen = [p for name, p in parts.policy.model.named_parameters() if "lora" not in name and not p.requires_grad]
    assert {parameter.untyped_storage().data_ptr() for parameter in frozen} == held
    random_b(parts.policy, scale=0.05)
    parts.hot_swap.swap()
    assert "copy of the base" not in capsys.readouterr().err
    assert (specs[0].cache_bytes, specs[0].num_sequences) == (GIB, 256)  # as the configuration says


def test_where_the_layout_differs_each_loads_its_own_base_and_it_is_said(card, tmp_path, toy_dir, capsys) -> None:
    events: list[str] = []
    engine = made_up_engine(load_model(toy_dir, TOY_MODEL, CPU))
    change(engine, "model.norm", torch.Tensor.double)
    parts, specs = assembled(tmp_path, toy_dir, events, engine)
    assert events == ["engine", "free", "base_weights", "closed", "engine"]
    assert [engine_spec.shares_base for engine_spec in specs] == [True, False]
    said = capsys.readouterr().err
    assert "each load their own copy of the base: the engine's model.norm.weight is in float64" in said
    held = {parameter.untyped_storage().data_ptr() for parameter in engine.parameters()}
    assert not any(p.untyped_storage().data_ptr() in held for p in parts.policy.model.parameters())


def test_a_trainer_that_fails_to_load_leaves_no_engine_behind(card, tmp_path, toy_dir, monkeypatch) -> None:
    def failing(*_, **__):
        raise ConfigError("no such model")

    monkeypatch.setattr(assembling.Base, "load", failing)
    events: list[str] = []
    monkeypatch.setattr(Recording, "__init__", lambda self, *_: setattr(self, "events", events))
    monkeypatch.setattr(Recording, "base_weights", lambda self: {})
    monkeypatch.setattr(Recording, "close", lambda self: events.append("closed"))
    with pytest.raises(ConfigError, match="no such model"):
        assembled(tmp_path, toy_dir, events, nn.Module())
    assert events == ["engine", "free", "closed"]


def test_helpers_reach_the_worker() -> None:
    cache = torch.full((2,), float("nan"))
    worker = SimpleNamespace(model_runner=SimpleNamespace(get_model=lambda: "model", kv_caches=[cache]))
    assert model_of(worker) == "model"
    zero_cache(worker)
    assert cache.tolist() == [0, 0]


def test_float16_and_bfloat16_are_shared_as_they_are(fake_vllm, toy_dir) -> None:
    config = ModelConfig(name=TOY_MODEL.name, dtype="bfloat16")
    policy = Policy.load(toy_dir, config, LoraConfig(), seed=0, device=CPU)
    sampler = VllmSampler(replace(spec(policy, toy_dir, config, SamplerConfig(kind="vllm")), shares_base=True))
    llm = RecordingLlm.made[-1]
    llm.engine = made_up_engine(load_model(toy_dir, config, CPU))
    assert {weight.dtype for weight in sampler.base_weights().values()} == {torch.bfloat16}
    llm.engine = made_up_engine(load_model(toy_dir, TOY_MODEL, CPU))
    with pytest.raises(LayoutError, match="is in float32, the trainer computes in bfloat16"):
        sampler.base_weights()
    sampler.close()
