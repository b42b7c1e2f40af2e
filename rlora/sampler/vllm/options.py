"""What vLLM's engine is given: sizes, memory, the settings that make sampling a function of its seeds."""

from typing import Any

import torch

from rlora.sampler.base import EngineSpec
from rlora.train.card import GIB, Card
from rlora.train.memory_plan import SEQUENCES, prefill_tokens

_CPU_BLOCK_SIZE = 32  # smallest that the CPU attention takes; its default of 128 caches no prompt shorter than that
_CPU_PREFILL_TOKENS = 4096  # prompt tokens computed at once; never below the longest prompt, which must not be cut
_GRAPH_STEP = 1.3  # ratio of neighbouring batch sizes that have a CUDA graph: 22 of them up to 1,024


def engine_options(spec: EngineSpec) -> dict[str, Any]:
    """Return what vLLM's `LLM` is given beside the model's folder."""
    num_sequences = spec.num_sequences or spec.config.max_num_seqs or SEQUENCES
    cache_bytes = spec.cache_bytes if spec.cache_bytes is not None else int(spec.config.kv_cache_gb * GIB)
    return {
        "dtype": spec.model.dtype,
        "trust_remote_code": spec.model.trust_remote_code,
        "max_model_len": spec.max_length,
        "max_num_seqs": num_sequences,
        "enable_prefix_caching": True,
        "kv_cache_memory_bytes": cache_bytes,
        **(_gpu_options(spec, num_sequences) if torch.cuda.is_available() else _cpu_options(spec)),
        **_lora_options(spec),
        "logprobs_mode": "processed_logprobs",
        "hf_overrides": {"head_dtype": spec.model.head_dtype},
        "generation_config": "vllm",
        "enable_sleep_mode": spec.shares_base,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }


def _cpu_options(spec: EngineSpec) -> dict[str, Any]:
    return {
        "block_size": _CPU_BLOCK_SIZE,
        "enable_chunked_prefill": False,  # a seeded request whose prefill is cut ends the CPU build's engine
        "max_num_batched_tokens": max(_CPU_PREFILL_TOKENS, spec.max_length),
    }


def _gpu_options(spec: EngineSpec, num_sequences: int) -> dict[str, Any]:
    """Return the options of a GPU, whose memory trainer and engine share.

    vLLM starts only if the share of the card that it is given is free, whatever its cache takes. Long sequences would
    make it reserve activations for a prefill of their whole length; prompts are shorter, so prefills may be cut there.
    """
    num_tokens = prefill_tokens(spec.max_length)
    return {
        "gpu_memory_utilization": Card.present().engine_share,
        "enable_chunked_prefill": num_tokens < spec.max_length,
        "max_num_batched_tokens": num_tokens,
        "compilation_config": {
            "cudagraph_capture_sizes": graph_sizes(num_sequences),
            "cudagraph_specialize_lora": False,  # requests to the base alone are rare: the canary's and evaluations'
        },
    }


def graph_sizes(num_sequences: int) -> list[int]:
    """Return the batch sizes for which a CUDA graph is recorded, up to `num_sequences`; others are padded to the next.

    Example: `graph_sizes(40)` is `[1, 2, 4, 8, 16, 24, 32, 40]`.
    """
    sizes = [1, 2, 4, 8]
    while sizes[-1] < num_sequences:
        sizes.append(max(sizes[-1] + 8, int(sizes[-1] * _GRAPH_STEP) // 8 * 8))
    return [size for size in sizes if size < num_sequences] + [num_sequences]


def how_long_a_start_takes() -> str:
    """Return what is known of an engine's start, for people who wait for it."""
    return "a minute or two on a GPU" if torch.cuda.is_available() else "half a minute on a CPU"


def why_not_started(error: Exception) -> str:
    """Return what an engine's failure to start means for the one who started it."""
    reason = next(iter(str(error).strip().splitlines()), "it gives no reason")
    return (
        f"vLLM did not start ({type(error).__name__}: {reason}). If it lacks memory: `rlora check RECIPE --gpu GB` "
        "shows where that goes; lower --sampler.kv-cache-gb, --sampler.max-num-seqs or --sampling.max-tokens, and end "
        "what else runs on the GPU. VLLM_LOGGING_LEVEL=DEBUG before the command makes it say more; --sampler.kind "
        "torch is the slow reference."
    )


def _lora_options(spec: EngineSpec) -> dict[str, Any]:
    """Return the engine's options for adapters: none where all weights are handed over."""
    if spec.lora is None:
        return {}
    return {
        "enable_lora": True,
        "max_lora_rank": _legal_rank(spec.lora.rank),
        "max_loras": spec.num_policies,
        "max_cpu_loras": 2 * spec.num_policies,
        "lora_target_modules": list(spec.target_modules),
    }


def _legal_rank(rank: int) -> int:
    """Return the smallest `max_lora_rank` that vLLM accepts and that holds `rank`."""
    return next(legal for legal in (1, 8, 16, 32, 64, 128, 256, 320, 512) if legal >= rank)
