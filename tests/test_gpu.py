"""What must hold on one NVIDIA GPU: `pytest -m gpu` on a machine that has one.

On an H100 those without an engine passed; those with one were changed after they failed there (docs/log.md).
"""

import subprocess
import sys

import pytest
import torch
from support.engines import random_b
from support.kernels import OFF, ON, gradient_of
from support.liars import ServesBase
from support.policies import ROOT
from support.training import ADVANTAGES, SGD_LIKE, groups
from support.vllm_bench import BUNDLED, Bench
from torch import nn

from rlora.errors import ProofError
from rlora.lora.config import LoraConfig
from rlora.model.attention import attend, visibility_mask, visible_ranges
from rlora.model.logprobs import logits
from rlora.model.sources import make_toy, model_dir
from rlora.proof.hot_swap import HotSwap
from rlora.sampler.base import is_vllm_installed
from rlora.train.batching import BatchConfig, build_batch, made_up_row, stack
from rlora.train.losses import LossConfig
from rlora.train.policy import Policy
from rlora.train.token_budget import measured_batch_memory
from rlora.train.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore"),
]
needs_vllm = pytest.mark.skipif(not is_vllm_installed(), reason="vLLM is not installed")
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def test_logits_of_16_bit_numbers_are_fp32() -> None:
    hidden = torch.randn(200, 576, device=GPU).bfloat16()
    head = (torch.randn(5000, 576, device=GPU) / 3).bfloat16()
    found, exact = logits(hidden, head, torch.float32), hidden.double() @ head.double().T
    assert float((found - exact).abs().max()) < 1e-5 * float(exact.abs().max())


@pytest.mark.parametrize("lora", [LoraConfig(), LoraConfig(rank=3), None])
def test_the_gradient_is_the_cpus(toy_dir, lora) -> None:
    found = []
    for device in (CPU, GPU):
        policy = Policy.load(toy_dir, OFF, lora, seed=0, device=device)
        if lora is not None:
            random_b(policy, scale=0.01)
        metrics = Trainer(policy, SGD_LIKE, LossConfig()).apply(
            build_batch(groups(), ADVANTAGES, BatchConfig(), version=0)
        )
        found.append((policy.flat.grad_D.cpu(), metrics["loss/value"]))
    (grad, loss), (gpu_grad, gpu_loss) = found
    assert float((gpu_grad - grad).norm()) < 1e-4 * float(grad.norm())
    assert gpu_loss == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("batch", [BatchConfig(), BatchConfig(tokens_per_micro_batch=1, tokens_per_row=0)])
def test_compiled_kernels_give_the_plain_gradient(toy_dir, rank, batch) -> None:
    found, plain = (gradient_of(toy_dir, config, rank, batch, 0.8) for config in (ON, OFF))
    assert float((found - plain).norm()) < 1e-5 * float(plain.norm())


@pytest.mark.parametrize("seen", [visibility_mask, visible_ranges])
@pytest.mark.parametrize("length", [64, 61, 384, 700])
@pytest.mark.parametrize("key_heads", [1, 3, 9])
def test_attention_is_the_cpus(key_heads, length, seen, capsys) -> None:
    segments = torch.tensor([[0] * 20 + [1] * 20 + [2] * (length - 40), [0] * 10 + [1] * 20 + [-1] * (length - 30)])
    shapes = ((2, 9, length, 64), (2, key_heads, length, 64), (2, key_heads, length, 64))
    inputs = [torch.randn(shape) for shape in shapes]
    found = []
    for device, dtype in ((CPU, torch.float32), (GPU, torch.bfloat16)):
        leaves = [one.to(device, dtype, copy=True).requires_grad_() for one in inputs]
        out, _ = attend(nn.Identity(), *leaves, seen(segments.to(device)), 0.125)
        out = out * (segments >= 0)[:, :, None, None].to(device)
        out.sum().backward()
        found.append([one.detach().cpu().float() for one in (out, *(leaf.grad for leaf in leaves))])
    for right, ours in zip(*found, strict=True):
        assert float((ours - right).norm()) < 1e-2 * float(right.norm())
    assert capsys.readouterr().err == ""  # or it would say that blocks cannot be used


@pytest.mark.parametrize("num_rows", [2, 16])
def test_batches_take_what_is_reserved_for_them(num_rows) -> None:
    policy = Policy.load(model_dir(BUNDLED), BUNDLED, LoraConfig(), seed=0)
    micro_batch = stack([made_up_row(256, 256)] * num_rows).to(GPU)
    reserved = measured_batch_memory(policy, row_tokens=512)[0].of(512 * num_rows)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    policy.score(micro_batch).logprobs_N.sum().backward()
    taken = torch.cuda.max_memory_allocated() - before
    assert taken == pytest.approx(reserved, rel=0.2)


@pytest.fixture(scope="module")
def bench():
    made = Bench(kv_cache_gb=2.0)
    yield made
    made.sampler.close()


@needs_vllm
def test_policy_lies_on_the_gpu_and_agrees_with_the_engine(bench) -> None:
    assert bench.policy.device.type == "cuda"
    bench.put(version=1)
    assert bench.difference(bench.draw(num_samples=8, max_tokens=24)) <= 0.04


@needs_vllm
def test_swaps_are_proven_and_lies_are_caught(bench) -> None:
    bench.policy.version = 0
    random_b(bench.policy, scale=0.0)
    swap = HotSwap(bench.policy, bench.sampler, bench.prompts, seed=1)
    swap.swap()
    random_b(bench.policy, scale=5e-2, seed=1)  # at 1e-2 noise was too near
    bench.policy.version = 1
    assert swap.swap()["proof/canary_is_decided_base"] == 1
    lying = HotSwap(bench.policy, ServesBase(bench.sampler), bench.prompts, seed=1)
    with pytest.raises(ProofError):
        lying.swap()


@needs_vllm
def test_adapters_of_experts_are_served_as_trained(tmp_path) -> None:
    """In a process of its own: an engine with experts does not start after one without."""
    from transformers import Qwen3MoeConfig

    sizes = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 64}
    make_toy(tmp_path / "mixture", config_class=Qwen3MoeConfig, **sizes)
    code = f"""if True:
        import sys
        sys.path.insert(0, "tests")
        from support.vllm_bench import Bench
        from rlora.model.sources import ModelConfig
        made = Bench(ModelConfig(name={str(tmp_path / "mixture")!r}), kv_cache_gb=1.0)
        made.put(version=1, scale=5e-2)
        completions = made.draw(num_samples=8, max_tokens=24)
        difference, of_base = made.difference(completions), made.difference(completions, is_base=True)
        made.sampler.close()
        assert difference <= 0.04 and of_base > 4 * difference, (difference, of_base)
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


@needs_vllm
def test_one_copy_of_the_base_and_a_cache_that_gives_way() -> None:
    """In a process of its own: all of the engine's memory is counted. Never run yet (docs/gpu.md)."""
    code = """if True:
        import dataclasses, sys
        sys.path.insert(0, "tests")
        import torch
        from support.engines import RANK_1, random_b, spec
        from support.vllm_bench import BUNDLED, Bench
        from rlora.model.sources import model_dir
        from rlora.train.policy import Policy
        from rlora.sampler.base import SamplerConfig
        from rlora.proof.hot_swap import HotSwap
        from rlora.sampler.vllm.engine import VllmSampler

        class Shared(Bench):
            def __init__(self):
                self.folder = model_dir(BUNDLED)
                config = SamplerConfig(kind="vllm", kv_cache_gb=4.0, max_num_seqs=64)
                on_cpu = Policy.load(self.folder, BUNDLED, RANK_1, seed=0, device=torch.device("cpu"))
                wanted = spec(on_cpu, self.folder, BUNDLED, config)
                self.sampler = VllmSampler(dataclasses.replace(wanted, shares_base=True))
                before = torch.cuda.memory_allocated()
                self.policy = Policy.load(
                    self.folder, BUNDLED, RANK_1, seed=0, weights=self.sampler.base_weights()
                )
                assert torch.cuda.memory_allocated() - before < 2**26, "a copy of the base was loaded"
                self.prompts = self.arithmetic_prompts(BUNDLED)

        made = Shared()
        kept = {name: weight.clone() for name, weight in made.sampler.base_weights().items()}
        swap = HotSwap(made.policy, made.sampler, made.prompts, seed=1)
        swap.swap()
        for version in (1, 2, 3):
            free, _ = torch.cuda.mem_get_info()
            made.sampler.free_cache()
            gained = torch.cuda.mem_get_info()[0] - free
            assert gained > 3.9 * 2**30, gained
            random_b(made.policy, scale=5e-2, seed=version)
            made.policy.version = version
            made.sampler.restore_cache()
            metrics = swap.swap()
            assert metrics["proof/canary_is_decided_base"] == 1
            assert made.difference(made.draw(num_samples=8, max_tokens=24)) <= 0.04
            assert made.difference(made.draw(policy=None, num_samples=8, max_tokens=24), is_base=True) <= 0.05
        for name, weight in made.sampler.base_weights().items():
            assert torch.equal(weight, kept[name]), name
        made.sampler.free_cache()
        made.sampler.close()
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
