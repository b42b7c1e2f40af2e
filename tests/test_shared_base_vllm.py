"""Views of vLLM's own models, filled by its loader and wrapped for its adapters, on the CPU before it packs them away.

In a process of its own: vLLM's distributed state is one a process, and an engine of other tests has its own.
"""

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.policies import ROOT
from support.shared_base import CPU, KINDS, configured, logits_of, storages

from rlora.errors import LayoutError
from rlora.model.loading import load_model
from rlora.model.sources import empty_model, make_toy
from rlora.sampler.base import is_vllm_installed
from rlora.sampler.vllm.cache_memory import only_the_cache_sleeps
from rlora.sampler.vllm.shared_base import base_views, check_rows
from rlora.sampler.vllm.weights import weights_of

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not is_vllm_installed(), reason="vLLM is not installed"),
    pytest.mark.filterwarnings("ignore"),  # of vLLM and what it imports
]
NATIVE = [kind for kind in KINDS if kind != "olmo2"]  # which vLLM computes with Transformers' class, and alters that
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@contextmanager
def vllm_model(folder: Path, dtype: str, *, is_packed: bool = False):
    """Yield vLLM's model of a folder with its layers wrapped for adapters, packed for the CPU or as it was loaded."""
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
    from vllm.model_executor.model_loader.utils import initialize_model, process_weights_after_loading
    from vllm.utils.torch_utils import set_default_torch_dtype

    arguments: dict[str, Any] = {"model": str(folder), "dtype": dtype, "max_model_len": 64}
    adapters = {"enable_lora": True, "max_lora_rank": 1, "max_loras": 1, "lora_target_modules": PROJECTIONS}
    config = EngineArgs(**arguments, **adapters).create_engine_config()
    with set_current_vllm_config(config):
        begin_once()
        with set_default_torch_dtype(getattr(torch, dtype)):
            model: Any = initialize_model(vllm_config=config)
        model.load_weights(weights_of(folder))
        if is_packed:
            process_weights_after_loading(model, config.model_config, CPU)
        manager = LRUCacheWorkerLoRAManager(config, CPU, model.embedding_modules)
        yield manager.create_lora_manager(model, config)


def begin_once() -> None:
    """Start what vLLM's layers ask of their group of processes: a group of one."""
    from vllm.distributed.parallel_state import (
        init_distributed_environment,
        initialize_model_parallel,
        model_parallel_is_initialized,
    )

    if not model_parallel_is_initialized():
        meeting_place = Path(tempfile.mkdtemp()) / "store"
        init_distributed_environment(1, 0, f"file://{meeting_place}", 0, "gloo")
        initialize_model_parallel(1, 1)


def made(kind: str) -> Path:
    import transformers

    config_class, fields = KINDS[kind]
    folder = Path(tempfile.mkdtemp()) / "model"
    make_toy(folder, config_class=getattr(transformers, config_class), **fields)
    return folder


def check(kind: str, dtype: str) -> None:
    """Check that the views of one kind of model are the model's weights, in the engine's storage."""
    folder = made(kind)
    config = configured(folder, dtype)
    normal = load_model(folder, config, CPU)
    with vllm_model(folder, dtype) as engine:
        assert any(name.endswith("qkv_proj.base_layer") for name, _ in engine.named_modules())
        views = base_views(engine, empty_model(folder, config), getattr(torch, dtype))
        check_rows(views, folder)
        model = load_model(folder, config, CPU, weights=views)
        for name, parameter in normal.named_parameters():
            assert torch.equal(views[name], parameter), name
            assert type(views[name]) is torch.Tensor
        assert torch.equal(logits_of(model), logits_of(normal))
        assert storages(model) == storages(engine)
        attention = engine.get_submodule("model.layers.1.self_attn.qkv_proj").base_layer
        attention.weight.data[-1, 0] += 1
        assert model.model.layers[1].self_attn.v_proj.weight[-1, 0] == attention.weight[-1, 0]


def refusal_of_packed(kind: str) -> str:
    """Return why weights are refused that vLLM has packed for the CPU; it packs none on one without AVX-512."""
    folder = made(kind)
    with vllm_model(folder, "bfloat16", is_packed=True) as engine:
        if all(weight.numel() for weight in engine.parameters()):
            return "nothing was packed"
        try:
            base_views(engine, empty_model(folder, configured(folder)), torch.bfloat16)
        except LayoutError as error:
            return str(error)
    return "not refused"


def test_vllms_own_layers_lie_as_the_views_take_them() -> None:
    code = """if True:
        import test_shared_base_vllm as tests
        for kind in tests.NATIVE:
            for dtype in ("float32", "bfloat16"):
                tests.check(kind, dtype)
                print("CHECKED", kind, dtype)
        print("REFUSED", tests.refusal_of_packed("qwen2"))
    """
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **quiet, "PYTHONPATH": f"tests{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert sum(line.startswith("CHECKED") for line in lines) == 2 * len(NATIVE)
    refusal = next(line for line in lines if line.startswith("REFUSED"))
    if "nothing was packed" not in refusal:
        assert "qkv_proj.weight is empty: its numbers were packed away for the CPU" in refusal


def test_of_vllms_own_worker_the_cache_alone_is_pooled(monkeypatch) -> None:
    """What the allocator is asked for on a GPU with sleep mode on; the allocator itself needs a GPU."""
    from vllm.v1.worker import gpu_worker

    pooled: list[str] = []
    allocator = SimpleNamespace(
        get_current_usage=lambda: 0, use_memory_pool=lambda *, tag: pooled.append(tag) or nullcontext()
    )
    platform = SimpleNamespace(is_cuda_alike=lambda: True, is_xpu=lambda: False, is_cpu=lambda: False)
    monkeypatch.setattr(gpu_worker, "current_platform", platform)
    monkeypatch.setattr(gpu_worker, "get_mem_allocator_instance", lambda: allocator)
    worker_class: Any = type("Worker", (gpu_worker.Worker,), {})
    worker = object.__new__(worker_class)
    worker.vllm_config = SimpleNamespace(model_config=SimpleNamespace(enable_cumem_allocator=True))
    for tag in ("weights", "kv_cache", "runtime", "workspace"):
        worker._maybe_get_memory_pool_context(tag)
    assert pooled == ["weights", "kv_cache", "runtime", "workspace"]
    pooled.clear()
    only_the_cache_sleeps(worker_class)
    for tag in ("weights", "kv_cache", "runtime", "workspace"):
        worker._maybe_get_memory_pool_context(tag)
    assert pooled == ["kv_cache"]


def test_vllm_has_what_is_asked_of_it() -> None:
    """Names and arguments of the pinned version that the sampler calls; its fake in other tests would not miss them."""
    import inspect

    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.worker.gpu_worker import Worker

    assert "level" in inspect.signature(LLM.sleep).parameters
    assert "tags" in inspect.signature(LLM.wake_up).parameters
    assert callable(LLM.reset_prefix_cache)
    assert callable(LLM.collective_rpc)
    assert callable(LLMEngine.is_sleeping)
    assert list(inspect.signature(Worker._maybe_get_memory_pool_context).parameters) == ["self", "tag"]
    assert "enable_sleep_mode" in inspect.signature(EngineArgs).parameters
