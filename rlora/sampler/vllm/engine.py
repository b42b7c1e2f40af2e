"""vLLM as a sampler: the engine in the trainer's process, one seed a request, a new name and id for every adapter.

Full weights replace those of the engine, which then holds either the base or the policy: requests for the other one
make it load that again. Which of the two it serves is for the proof to say.

The settings make sampling a function of its seeds (measured on the CPU build, docs/log.md): the engine steps in this
process, so all requests of a call are there before the first step, and prefills are never cut in two. Left out on
purpose: in-place reloading (`load_inplace` is sticky and re-reads the files on every request).

An engine that shares its weights with the trainer sleeps while the trainer computes, so that the KV cache's memory is
free for batches. A sleeping engine can drop its adapter, and more (vLLM issue 53888), so all but the cache is kept out
of the memory that sleeping gives away, and after it nothing is sampled from a policy that was not loaded anew: under a
new name and id, and proven, as after every update.
"""

import gc
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from rlora.errors import EngineError, EngineStartError, SamplerError
from rlora.full.weights import FullWeights, Snapshot
from rlora.lora.adapter import Adapter
from rlora.model.sources import DTYPES, cache_dir, empty_model, load_tokenizer
from rlora.model.tokens import said_text
from rlora.sampler.base import EngineSpec
from rlora.sampler.vllm import cpu_head, cpu_lora, handover
from rlora.sampler.vllm.cache_memory import model_of, only_the_cache_sleeps, zero_cache
from rlora.sampler.vllm.counted import counted_steps
from rlora.sampler.vllm.options import engine_options, how_long_a_start_takes, why_not_started
from rlora.sampler.vllm.shared_base import base_views, check_rows
from rlora.sampler.vllm.weights import put_weights, weights_of
from rlora.seeding import derive_seed
from rlora.system.files import folder_in_memory
from rlora.system.screen import is_diverted, stage
from rlora.types import Completion, SampleRequest, SamplingParams, StopReason, digest_of

_IN_THIS_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # or samples would depend on when requests arrive
_DEFAULTS = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_ATTN_SPLIT_KV": "0",  # or a row's attention is summed in as many parts as few rows leave threads for
}


class VllmSampler:
    """The Sampler on vLLM."""

    def __init__(self, spec: EngineSpec):
        """Start an engine for `spec`, which serves the base."""
        with stage("Starting vLLM", usually=how_long_a_start_takes()):
            self._start(spec)
        self._tokenizer = load_tokenizer(spec.folder, spec.model)
        self._spec = spec
        self._current: dict[int, Any] = {}  # policy -> the LoRARequest that serves it
        self._versions: dict[int, int] = {}
        self._num_loads = 0
        self._weights: FullWeights | None = None  # of the policy, where there are no adapters
        self._holds_base = True
        self._adapter_dir = folder_in_memory()
        self._sleeps = self._has_slept = False  # now; since policies were loaded

    def _start(self, spec: EngineSpec) -> None:
        os.environ.update(_IN_THIS_PROCESS)
        level = "INFO" if is_diverted() else "ERROR"
        defaults = {"VLLM_LOGGING_LEVEL": level, "VLLM_CACHE_ROOT": str(cache_dir() / "vllm"), **_DEFAULTS}
        for name, value in defaults.items():
            os.environ.setdefault(name, value)
        warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")  # of its own, at import and later
        from vllm import LLM

        if spec.shares_base:
            from vllm.v1.worker.gpu_worker import Worker

            only_the_cache_sleeps(Worker)
        if spec.lora is not None:
            handover.install()
            if not torch.cuda.is_available():
                cpu_lora.install()
        try:
            self._llm = LLM(str(spec.folder), **engine_options(spec))
        except Exception as error:  # a foreign engine fails to start in any way
            raise EngineStartError(why_not_started(error)) from error
        if spec.lora is not None and not torch.cuda.is_available():
            cpu_head.give_to(self._llm.collective_rpc(model_of)[0])

    def load(self, snapshots: Sequence[Snapshot]) -> None:
        """Serve these versions and forget those they replace."""
        if self._sleeps:
            raise SamplerError("vLLM's cache was freed; restore it before a policy is loaded.")
        for snapshot in snapshots:
            if isinstance(snapshot, FullWeights):
                self._weights, self._holds_base = snapshot, True
                self._hold(is_base=False)
            else:
                self._load_adapter(snapshot)
            self._versions[snapshot.policy] = snapshot.version
        self._has_slept = False

    def _load_adapter(self, adapter: Adapter) -> None:
        """Serve an adapter under a name and an id never used before, then remove the one it replaces."""
        from vllm.lora.request import LoRARequest

        self._num_loads += 1
        suffix = f"-p{adapter.policy:03d}" if self._spec.num_policies > 1 else ""
        name = f"{self._spec.run_name}{suffix}-v{adapter.version:06d}-{self._num_loads}"
        folder = self._adapter_dir / name
        handover.hand_over(adapter, folder)
        request = LoRARequest(name, self._num_loads, str(folder))
        if not self._llm.llm_engine.add_lora(request):
            raise SamplerError(f"vLLM did not load the adapter {name}.")
        previous = self._current.get(adapter.policy)
        self._current[adapter.policy] = request
        if previous is not None:
            self._llm.llm_engine.remove_lora(previous.lora_int_id)
            handover.take_back(Path(previous.lora_path))
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
        if self._sleeps:
            raise SamplerError("vLLM's cache was freed; restore it before anything is sampled.")
        if self._has_slept and any(request.policy is not None for request in requests):
            raise SamplerError("vLLM's cache was freed since the policy was loaded; load it again before sampling.")
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
        num_completions = sum(request.num_samples for request in requests)
        with _failing_as_an_engine("sampling"), counted_steps(self._llm.llm_engine, num_completions):
            outputs = self._llm.generate(prompts, params, lora_request=adapters, use_tqdm=False)
        results = []
        for request, output in zip(requests, outputs, strict=True):
            if len(output.outputs) != request.num_samples:
                raise SamplerError(
                    f"vLLM gave {len(output.outputs)} completions, {request.num_samples} were asked for."
                )
            results.append([self._completion(request, output, sample) for sample in output.outputs])
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
            seed=derive_seed(*request.seed_path(seed)) + request.first,  # vLLM adds a sample's number
            logprobs=0,  # the sampled token's alone
            stop=list(sampling.stop) or None,
            stop_token_ids=list(self._spec.end_token_ids),
            detokenize=bool(sampling.stop),
            skip_special_tokens=False,  # what is judged is what was said
        )

    def _completion(self, request: SampleRequest, output: Any, sample: Any) -> Completion:
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
            else said_text(self._tokenizer, token_ids, self._spec.end_token_ids),
            stop=stop,
            policy=request.policy or 0,
            version=-1 if request.policy is None else self._versions[request.policy],
            prompt=digest_of(output.prompt_token_ids),
        )

    def base_weights(self) -> dict[str, torch.Tensor]:
        """Return the engine's weights by the names of the trainer's parameters, as views; LayoutError if unknown."""
        engine = self._llm.collective_rpc(model_of)[0]
        model = self._spec.model
        views = base_views(engine, empty_model(self._spec.folder, model), DTYPES[model.dtype])
        check_rows(views, self._spec.folder)
        return views

    def free_cache(self) -> None:
        """Let the engine sleep, which gives the KV cache's memory away, if it shares its weights with the trainer."""
        if self._spec.shares_base:
            self._sleeps = self._has_slept = True
            with _failing_as_an_engine("freeing its cache"):
                self._llm.sleep(level=1)

    def restore_cache(self) -> None:
        """Wake the engine with an empty cache, if it shares its weights with the trainer."""
        if not self._spec.shares_base:
            return
        gc.collect()
        torch.cuda.empty_cache()  # freed batches lie in PyTorch's cache, where vLLM's allocator cannot get at them
        with _failing_as_an_engine("taking its cache's memory back"):
            self._llm.wake_up()
            is_asleep = self._llm.llm_engine.is_sleeping()
            self._llm.collective_rpc(zero_cache)
            is_reset = self._llm.reset_prefix_cache()
        if is_asleep or not is_reset:
            raise EngineError("vLLM did not wake up, or did not clear its prefix cache, whose blocks are gone.")
        self._sleeps = False

    @property
    def num_adapters(self) -> int:
        """Adapters that the engine holds."""
        return len(self._llm.llm_engine.list_loras())

    def close(self) -> None:
        """Shut the engine down and forget the adapters."""
        for request in self._current.values():
            handover.take_back(Path(request.lora_path))
        self._current.clear()
        shutil.rmtree(self._adapter_dir, ignore_errors=True)
        if self._sleeps:  # training failed: memory that is not mapped would be released a second time
            with suppress(Exception):  # of a foreign engine, which may find no memory any more
                self._llm.wake_up()
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextmanager
def _failing_as_an_engine(doing: str) -> Iterator[None]:
    """Raise EngineError for whatever vLLM raises."""
    try:
        yield
    except Exception as error:  # a foreign engine, in this process, fails in any way; none of them is ours to judge
        raise EngineError(f"vLLM failed while {doing}: {type(error).__name__}: {error}") from error
