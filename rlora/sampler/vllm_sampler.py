"""vLLM as a sampler: the engine in the trainer's process, one seed a request, a new name and id for every adapter.

Full weights replace those of the engine, which then holds either the base or the policy: requests for the other one
make it load that again. Which of the two it serves is for the proof to say.

The settings make sampling a function of its seeds (measured on the CPU build, docs/log.md): the engine steps in this
process, so all requests of a call are there before the first step, and prefills are never cut in two. Left out on
purpose: in-place reloading (`load_inplace` is sticky and re-reads the files on every request) and sleeping (a sleeping
engine can drop its adapter).
"""

import gc
import os
import shutil
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from rlora.errors import EngineError, EngineStartError, SamplerError
from rlora.files import folder_in_memory
from rlora.full.weights import FullWeights, Snapshot
from rlora.lora.peft_format import Adapter, save_adapter
from rlora.memory_plan import GIB, SEQUENCES, Card, prefill_tokens
from rlora.models import cache_dir, load_tokenizer
from rlora.sampler import vllm_cpu_lora
from rlora.sampler.base import EngineSpec
from rlora.sampler.vllm_weights import put_weights, weights_of
from rlora.seeding import derive_seed
from rlora.types import Completion, SampleRequest, SamplingParams, StopReason

_IN_THIS_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # or samples would depend on when requests arrive
_DEFAULTS = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
_CPU_BLOCK_SIZE = 32  # smallest that the CPU attention takes; its default of 128 caches no prompt shorter than that
_PREFILL_TOKENS = (
    4096  # prompt tokens computed at once; on the CPU never below the longest prompt, which must not be cut
)
_GRAPH_STEP = 1.3  # ratio of neighbouring batch sizes that have a CUDA graph: 22 of them up to 1,024


class VllmSampler:
    """The Sampler on vLLM."""

    def __init__(self, spec: EngineSpec):
        """Start an engine for `spec`, which serves the base."""
        os.environ.update(_IN_THIS_PROCESS)
        for name, value in (_DEFAULTS | {"VLLM_CACHE_ROOT": str(cache_dir() / "vllm")}).items():
            os.environ.setdefault(name, value)
        warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")  # of its own, at import and later
        from vllm import LLM

        try:
            self._llm = LLM(str(spec.folder), **engine_options(spec))
        except Exception as error:  # a foreign engine fails to start in any way
            raise EngineStartError(_why_not_started(error)) from error
        self._tokenizer = load_tokenizer(spec.folder, spec.model)
        self._spec = spec
        self._current: dict[int, Any] = {}  # policy -> the LoRARequest that serves it
        self._versions: dict[int, int] = {}
        self._num_loads = 0
        self._weights: FullWeights | None = None  # of the policy, where there are no adapters
        self._holds_base = True
        self._adapter_dir = folder_in_memory()

    def load(self, snapshots: Sequence[Snapshot]) -> None:
        """Serve these versions and forget those they replace."""
        for snapshot in snapshots:
            if isinstance(snapshot, FullWeights):
                self._weights, self._holds_base = snapshot, True
                self._hold(is_base=False)
            else:
                self._load_adapter(snapshot)
            self._versions[snapshot.policy] = snapshot.version

    def _load_adapter(self, adapter: Adapter) -> None:
        """Serve an adapter under a name and an id never used before, then remove the one it replaces."""
        from vllm.lora.request import LoRARequest

        self._num_loads += 1
        suffix = f"-p{adapter.policy:03d}" if self._spec.num_policies > 1 else ""
        name = f"{self._spec.run_name}{suffix}-v{adapter.version:06d}-{self._num_loads}"
        folder = self._adapter_dir / name
        save_adapter(adapter, folder)
        request = LoRARequest(name, self._num_loads, str(folder))
        if not self._llm.llm_engine.add_lora(request):
            raise SamplerError(f"vLLM did not load the adapter {name}.")
        previous = self._current.get(adapter.policy)
        self._current[adapter.policy] = request
        if previous is not None:
            self._llm.llm_engine.remove_lora(previous.lora_int_id)
            shutil.rmtree(previous.lora_path)

    def _hold(self, *, is_base: bool) -> None:
        """Put the base's or the policy's weights into the engine, unless they are there."""
        if self._holds_base != is_base:
            assert self._weights is not None
            put_weights(self._llm, weights_of(self._spec.folder) if is_base else self._weights.tensors.items())
            self._holds_base = is_base

    def sample(
        self, requests: Sequence[SampleRequest], sampling: SamplingParams, *, seed: int
    ) -> list[list[Completion]]:
        """Return the completions of each request, in order."""
        if self._spec.lora is not None:
            return self._generate(requests, sampling, seed)
        results: dict[int, list[Completion]] = {}
        for is_base in (self._holds_base, not self._holds_base):
            chosen = [index for index, request in enumerate(requests) if (request.policy is None) == is_base]
            if chosen:
                self._hold(is_base=is_base)
                completions = self._generate([requests[index] for index in chosen], sampling, seed)
                results |= dict(zip(chosen, completions, strict=True))
        return [results[index] for index in range(len(requests))]

    def _generate(
        self, requests: Sequence[SampleRequest], sampling: SamplingParams, seed: int
    ) -> list[list[Completion]]:
        has_adapters = self._spec.lora is not None
        adapters: Any = [self._current[r.policy] if has_adapters and r.policy is not None else None for r in requests]
        prompts: Any = [{"prompt_token_ids": list(request.token_ids)} for request in requests]
        params = [self._params(request, sampling, seed) for request in requests]
        try:
            outputs = self._llm.generate(prompts, params, lora_request=adapters, use_tqdm=False)
        except Exception as error:  # a foreign engine, in this process, fails in any way; none of them is ours to judge
            raise EngineError(f"vLLM failed while sampling: {type(error).__name__}: {error}") from error
        results = []
        for request, output in zip(requests, outputs, strict=True):
            if len(output.outputs) != request.num_samples:
                raise SamplerError(
                    f"vLLM gave {len(output.outputs)} completions, {request.num_samples} were asked for."
                )
            results.append([self._completion(request, sample) for sample in output.outputs])
        return results

    def _params(self, request: SampleRequest, sampling: SamplingParams, seed: int) -> Any:
        from vllm import SamplingParams as VllmParams

        if sampling.temperature == 0 and request.num_samples != 1:
            raise SamplerError("greedy sampling gives one completion a prompt; set the temperature above 0 for more.")
        return VllmParams(
            n=request.num_samples,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=derive_seed(seed, "sample", *request.key),
            logprobs=0,  # the sampled token's alone
            stop=list(sampling.stop) or None,
            stop_token_ids=list(self._spec.end_token_ids),
            detokenize=bool(sampling.stop),
        )

    def _completion(self, request: SampleRequest, sample: Any) -> Completion:
        token_ids = tuple(sample.token_ids)
        if sample.finish_reason == "length":
            stop = StopReason.LENGTH
        else:
            stop = StopReason.STOP_STRING if isinstance(sample.stop_reason, str) else StopReason.END
        return Completion(
            token_ids=token_ids,
            logprobs=tuple(at[token].logprob for at, token in zip(sample.logprobs, token_ids, strict=True)),
            text=sample.text
            if stop is StopReason.STOP_STRING
            else self._tokenizer.decode(token_ids, skip_special_tokens=True),
            stop=stop,
            policy=request.policy or 0,
            version=-1 if request.policy is None else self._versions[request.policy],
        )

    @property
    def num_adapters(self) -> int:
        """Adapters that the engine holds."""
        return len(self._llm.llm_engine.list_loras())

    def close(self) -> None:
        """Shut the engine down and remove the adapter files."""
        shutil.rmtree(self._adapter_dir, ignore_errors=True)
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


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
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }


def _cpu_options(spec: EngineSpec) -> dict[str, Any]:
    return {
        "block_size": _CPU_BLOCK_SIZE,
        "enable_chunked_prefill": False,  # a seeded request whose prefill is cut ends the CPU build's engine
        "max_num_batched_tokens": max(_PREFILL_TOKENS, spec.max_length),
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


def _why_not_started(error: Exception) -> str:
    reason = next(iter(str(error).strip().splitlines()), "it gives no reason")
    return (
        f"vLLM did not start ({type(error).__name__}: {reason}). If it lacks memory: `rlora check RECIPE --gpu GB` "
        "shows where that goes; lower --sampler.kv-cache-gb, --sampler.max-num-seqs or --sampling.max-tokens, and end "
        "what else runs on the GPU. VLLM_LOGGING_LEVEL=INFO before the command shows all that it says; --sampler.kind "
        "torch is the slow reference."
    )


def _lora_options(spec: EngineSpec) -> dict[str, Any]:
    """Return the engine's options for adapters: none where all weights are handed over."""
    if spec.lora is None:
        return {}
    if not torch.cuda.is_available():
        vllm_cpu_lora.install()
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
