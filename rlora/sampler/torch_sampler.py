"""The reference sampler: plain PyTorch with a KV cache, any model, any device, bit-for-bit repeatable, slow.

Each request is computed by itself, so its completions do not depend on what is sampled beside it. It is also the
fallback where vLLM does not install.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from rlora.errors import LayoutError, SamplerError
from rlora.full.weights import Snapshot
from rlora.lora.adapter import Adapter
from rlora.lora.config import LoraConfig
from rlora.lora.low_rank import LowRank
from rlora.model.sources import load_tokenizer
from rlora.model.tokens import said_text
from rlora.sampler.base import EngineSpec
from rlora.sampler.distribution import log_probabilities
from rlora.seeding import generator
from rlora.system.progress import Count, counting
from rlora.train.policy import Policy
from rlora.types import Completion, SampleRequest, SamplingParams, StopReason, digest_of


class TorchSampler:
    """The Sampler on a second copy of the base model in this process, which computes with one policy at a time."""

    def __init__(self, spec: EngineSpec):
        """Load the base model of `spec`, which is what is served until `load`."""
        self._policy = Policy.load(spec.folder, spec.model, spec.lora, seed=0)  # that is computed with
        self._of_shape = {spec.lora: self._policy}  # adapters may differ in rank, scale and layers
        self._snapshots: dict[int, Snapshot] = {}  # policy -> what it serves, numbered as the one policy there is
        self._computed: int | None = None  # the number of the policy whose numbers it holds
        self._tokenizer = load_tokenizer(spec.folder, spec.model)
        self._end_token_ids = torch.tensor(spec.end_token_ids, device=self._policy.device)
        self._versions: dict[int, int] = {}

    def load(self, snapshots: Sequence[Snapshot]) -> None:
        """Keep the snapshots in place of those of the same policies."""
        for snapshot in snapshots:
            is_adapter = isinstance(snapshot, Adapter)
            self._snapshots[snapshot.policy] = replace(snapshot.served(), policy=0) if is_adapter else snapshot
            self._versions[snapshot.policy] = snapshot.version
            if self._computed == snapshot.policy:
                self._computed = None

    def _compute_with(self, policy: int) -> None:
        """Copy a policy's snapshot into a flat vector of this sampler's own, unless it is there."""
        if self._computed != policy:
            snapshot = self._snapshots[policy]
            self._policy = self._shaped(snapshot.config if isinstance(snapshot, Adapter) else None)
            self._policy.assign(snapshot)
            self._computed = policy

    def _shaped(self, shape: LoraConfig | None) -> Policy:
        """Return the policy of this shape on the one base."""
        if shape not in self._of_shape:
            assert shape is not None  # an engine of full weights serves nothing else
            self._of_shape[shape] = Policy(self._policy.base, LowRank(self._policy.base, shape, seed=0))
        return self._of_shape[shape]

    @torch.no_grad()
    def sample(
        self, requests: Sequence[SampleRequest], sampling: SamplingParams, *, seed: int
    ) -> list[list[Completion]]:
        """Return the completions of each request, in order."""
        results = []
        with counting("completions", sum(request.num_samples for request in requests)) as count:
            for request in requests:
                if request.policy is None:
                    with self._policy.adapter_off():
                        results.append(self._sample_one(request, sampling, seed, count))
                else:
                    self._compute_with(request.policy)
                    results.append(self._sample_one(request, sampling, seed, count))
        return results

    def _sample_one(
        self, request: SampleRequest, sampling: SamplingParams, seed: int, count: Count
    ) -> list[Completion]:
        from transformers import DynamicCache

        if sampling.temperature == 0 and request.num_samples != 1:
            raise SamplerError("greedy sampling gives one completion a prompt; set the temperature above 0 for more.")
        device, rows = self._policy.device, request.num_samples
        later = ("from", request.first) if request.first else ()  # one generator draws for all rows of a request
        random = generator(*request.seed_path(seed), *later, device=device)
        cache = DynamicCache()
        tokens_B1 = torch.tensor([request.token_ids], device=device)
        log_p_BV = log_probabilities(self._policy.next_token_logits(tokens_B1, cache), sampling).expand(rows, -1)
        cache.batch_repeat_interleave(rows)
        tokens, logprobs = [], []
        is_done_B, num_done = torch.zeros(rows, dtype=torch.bool, device=device), 0
        while True:
            tokens_B = _draw(log_p_BV, sampling, random)
            tokens.append(tokens_B)
            logprobs.append(log_p_BV.gather(1, tokens_B[:, None]).squeeze(1))
            is_done_B |= torch.isin(tokens_B, self._end_token_ids)
            if sampling.stop:
                is_done_B |= torch.tensor(
                    [self._has_stop_string(row, sampling) for row in torch.stack(tokens, 1)], device=device
                )
            num_going, num_done = rows - num_done, int(is_done_B.sum())
            if len(tokens) == sampling.max_tokens:
                num_done = rows
            count.add(num_going - (rows - num_done), tokens=num_going)
            if num_done == rows:
                break
            log_p_BV = log_probabilities(self._policy.next_token_logits(tokens_B[:, None], cache), sampling)
        tokens_BT, logprobs_BT = torch.stack(tokens, 1).cpu(), torch.stack(logprobs, 1).cpu()
        return [
            self._completion(request, row_T.tolist(), logprobs_T.tolist(), sampling)
            for row_T, logprobs_T in zip(tokens_BT, logprobs_BT, strict=True)
        ]

    def _has_stop_string(self, row_T: torch.Tensor, sampling: SamplingParams) -> bool:
        text = self._tokenizer.decode(row_T, skip_special_tokens=False)
        return any(stop in text for stop in sampling.stop)

    def _completion(
        self, request: SampleRequest, tokens: list[int], logprobs: list[float], sampling: SamplingParams
    ) -> Completion:
        """Cut a row at its first end token or stop string; later tokens were drawn only because other rows went on."""
        ends = set(self._end_token_ids.tolist())
        length = next((index + 1 for index, token in enumerate(tokens) if token in ends), len(tokens))
        stop = StopReason.END if tokens[length - 1] in ends else StopReason.LENGTH
        text = said_text(self._tokenizer, tokens[:length], ends)
        if cuts := [text.index(string) for string in sampling.stop if string in text]:
            text, stop = text[: min(cuts)], StopReason.STOP_STRING
        return Completion(
            token_ids=tuple(tokens[:length]),
            logprobs=tuple(logprobs[:length]),
            text=text,
            stop=stop,
            policy=request.policy or 0,
            version=-1 if request.policy is None else self._versions[request.policy],
            prompt=digest_of(request.token_ids),
        )

    def base_weights(self) -> Mapping[str, torch.Tensor]:
        """Raise LayoutError: adapters are put into this sampler's model, so the trainer has one of its own."""
        raise LayoutError("the torch sampler computes with a model of its own.")

    def free_cache(self) -> None:
        """Nothing to free: a cache lasts as long as its request."""

    def restore_cache(self) -> None:
        """Nothing to take back."""

    def close(self) -> None:
        """Nothing to free beyond the object itself."""


def _draw(log_p_BV: torch.Tensor, sampling: SamplingParams, random: torch.Generator) -> torch.Tensor:
    if sampling.temperature == 0:
        return log_p_BV.argmax(-1)
    return torch.multinomial(log_p_BV.exp(), 1, generator=random).squeeze(1)
