"""One step of a policy from its groups: accumulate the gradient, clip it, step the optimizer, say what happened."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from rlora.errors import CheckpointError, NonFiniteError, StaleBatchError
from rlora.lora.flat import Slot, norm
from rlora.system.exactness import deterministic
from rlora.system.memory import give_back_freed_memory, keep_freed_memory
from rlora.system.progress import Count, counting
from rlora.train.batching import Batch, BatchConfig, MicroBatch, build_batch
from rlora.train.losses import LossConfig, LossInputs, cross_entropy, find_loss, k3
from rlora.train.optimizer import FlatAdamW, OptimizerConfig, OptimizerState, learning_rate_at
from rlora.train.packing import TokenExample, pack_batch
from rlora.train.policy import Policy, TokenScores
from rlora.train.token_budget import TokenBudget, within_memory
from rlora.train.token_log import TokenLog, TrainedTokens, token_metrics
from rlora.types import Group

TokenCheck = Callable[[TrainedTokens], None]
"""Shown the tokens that a policy is about to be updated by; raises where sampler and trainer do not fit."""


class Trainer:
    """Holds a policy's optimizer and applies batches to the policy."""

    def __init__(
        self,
        policy: Policy,
        optimizer: OptimizerConfig,
        loss: LossConfig,
        batch: BatchConfig | None = None,
        *,
        temperature: float = 1.0,
        is_exact: bool = False,
    ):
        """Train `policy`; `temperature` is the sampler's, by which the trainer's logits are divided too.

        `batch` says how groups are cut; what memory has allowed of it is `budget`. `is_exact` takes deterministic
        kernels on a GPU; the CPU's are.
        """
        self.policy, self._config, self._loss, self._temperature = policy, optimizer, loss, temperature
        self._is_exact = is_exact
        self.budget = TokenBudget(batch or BatchConfig())
        keep_freed_memory()
        self._optimizer = FlatAdamW(policy.flat, optimizer)

    def state(self) -> OptimizerState:
        """Return a copy of the optimizer's state; zeros before the first update."""
        return self._optimizer.state()

    def restore(self, *, slots: Sequence[Slot], theta_D: torch.Tensor, optimizer: OptimizerState, version: int) -> None:
        """Put policy and optimizer back to where they were at `version`.

        Raises CheckpointError when its tensors are not the policy's.
        """
        flat = self.policy.flat
        if tuple(slots) != flat.slots or theta_D.shape != flat.theta_D.shape:
            raise CheckpointError(
                f"the checkpoint holds {len(slots)} tensors of {tuple(theta_D.shape)} numbers, "
                f"the policy {len(flat.slots)} of {tuple(flat.theta_D.shape)}; did the model's files change?"
            )
        with torch.no_grad():
            flat.theta_D.copy_(theta_D)
        self._optimizer.restore(optimizer)
        self.policy.refresh_served()
        self.policy.version = version

    def step(
        self,
        groups: Sequence[Group],
        advantages_PG: Sequence[Sequence[float]],
        *,
        check_tokens: TokenCheck | None = None,
    ) -> dict[str, float]:
        """Train on a step's groups, advance the policy's version, and return the metrics of docs/metrics.md.

        `check_tokens` is shown all trained tokens before the policy is updated; what it raises leaves the policy as it
        was. Where nothing is trained it is not called.

        The groups are cut into micro-batches that memory has room for; where it runs out, they are cut again, half as
        large. With a KL term rollouts without advantage are trained on too.

        Raises:
            OutOfMemoryError: single completions do not fit; the policy is as it was. And what `apply` raises.
        """
        keep_all = self._loss.kl_coefficient > 0
        return self._within_memory(
            lambda limits: build_batch(groups, advantages_PG, limits, version=self.policy.version, keep_all=keep_all),
            check_tokens,
        )

    def step_supervised(self, examples: Sequence[TokenExample]) -> dict[str, float]:
        """Train on examples by cross-entropy of their trained tokens, advance the policy's version, and return the
        metrics of docs/supervised.md. Raises what `step` raises.
        """
        squares = self.policy.base.has_materialised_scores
        return self._within_memory(
            lambda limits: pack_batch(examples, limits, version=self.policy.version, squares=squares), None
        )

    def _within_memory(self, make: Callable[[BatchConfig], Batch], check_tokens: TokenCheck | None) -> dict[str, float]:
        metrics, num_failures = within_memory(
            self.budget, self.policy, lambda limits: self.apply(make(limits), check_tokens=check_tokens)
        )
        return metrics | {"batch/tokens_allowed": self.budget.tokens, "batch/num_out_of_memory": num_failures}

    def apply(self, batch: Batch, *, check_tokens: TokenCheck | None = None) -> dict[str, float]:
        """Apply one batch, advance the policy's version, and return the metrics of docs/metrics.md; see `step`.

        A batch without rows makes no optimizer step and leaves the moments. Raises StaleBatchError for a batch of
        another version, and NonFiniteError, with the policy unchanged, when a loss or the gradient is not finite.
        """
        if batch.version != self.policy.version:
            raise StaleBatchError(
                f"the batch is of version {batch.version}, the policy of version {self.policy.version}."
            )
        metrics: dict[str, float] = {}
        if batch.micro_batches:
            micro_batches = [micro_batch.to(self.policy.device) for micro_batch in batch.micro_batches]
            with self._unchanged_on_error(is_on=not self._has_one_large_update), deterministic(is_on=self._is_exact):
                metrics = self._updates(micro_batches, batch, check_tokens)
        metrics["optimizer/learning_rate"] = learning_rate_at(self._config, batch.version)
        rate_of_b = metrics["optimizer/learning_rate"] * self._config.b_rate_ratio
        metrics["optimizer/step_size"] = rate_of_b * self.policy.parametrization.rate_factor
        metrics["optimizer/is_empty_batch"] = float(not batch.micro_batches)
        metrics["optimizer/adapter_norm"] = float(norm(self.policy.flat.theta_D))
        metrics["batch/padding_share"] = batch.num_padding / max(1, batch.num_positions)
        metrics["batch/num_positions"] = batch.num_positions
        above = self.policy.base.recompute_above
        recomputed = [
            part.num_positions for part in batch.micro_batches if above is not None and part.num_positions > above
        ]
        metrics["batch/recomputed_share"] = sum(recomputed) / max(1, batch.num_positions)
        if not batch.is_supervised:
            metrics["batch/sharing"] = batch.num_unshared_positions / max(1, batch.num_positions)
        metrics["batch/num_micro_batches"] = len(batch.micro_batches)
        self.policy.version += 1
        give_back_freed_memory()
        return metrics

    @property
    def _has_one_large_update(self) -> bool:
        """Whether every weight is trained, once a batch: what fails then fails before the update, but for one that
        makes something else than numbers.
        """
        return self._config.updates_per_batch == 1 and self.policy.config is None

    @contextmanager
    def _unchanged_on_error(self, *, is_on: bool) -> Iterator[None]:
        """Take back what was done of a batch when a part of it fails, so that it is trained on wholly or not at all; a
        copy of the policy and of its moments is held meanwhile.
        """
        if not is_on:
            yield
            return
        theta_D, state = self.policy.flat.theta_D.clone(), self.state()
        try:
            yield
        except BaseException:
            self.policy.flat.theta_D.copy_(theta_D)
            self._optimizer.restore(state)
            self.policy.refresh_served()
            raise

    def _updates(
        self, micro_batches: Sequence[MicroBatch], batch: Batch, check_tokens: TokenCheck | None
    ) -> dict[str, float]:
        old = self._old_logprobs(micro_batches)
        metrics: dict[str, float] = {}
        with counting("micro-batches", self._config.updates_per_batch * len(micro_batches)) as count:
            for update in range(self._config.updates_per_batch):
                # agreement with the sampler is meant at the version that sampled
                update_metrics = self._update(micro_batches, old, batch, None if update else check_tokens, count)
                if update == 0:
                    metrics = update_metrics
                metrics |= {name: value for name, value in update_metrics.items() if _is_of_last_update(name)}
        return metrics

    def _old_logprobs(self, micro_batches: Sequence[MicroBatch]) -> list[torch.Tensor]:
        """Return what a clip measures from: the sampler's log-probabilities, or with several updates the trainer's
        first.
        """
        if self._config.updates_per_batch == 1:
            return [micro_batch.sampler_logprobs_N for micro_batch in micro_batches]
        with torch.no_grad():
            return [self._score(micro_batch).logprobs_N for micro_batch in micro_batches]

    def _score(self, micro_batch: MicroBatch) -> TokenScores:
        return self.policy.score(micro_batch, temperature=self._temperature)

    def _update(
        self,
        micro_batches: Sequence[MicroBatch],
        old: Sequence[torch.Tensor],
        batch: Batch,
        check_tokens: TokenCheck | None,
        count: Count,
    ) -> dict[str, float]:
        """Make one update and return its metrics, which are made first: what fails leaves the policy as it was."""
        flat, num_trained, is_supervised = self.policy.flat, batch.num_trained_tokens, batch.is_supervised
        flat.zero_grad()
        # powers of two move no bit, and keep what a token adds to the gradient from underflow in float16
        scale = 2.0 ** math.floor(math.log2(max(1, num_trained)))
        log = TokenLog([], [], [], [], [], defaultdict(list))
        weight = 1 / torch.tensor(num_trained, dtype=torch.float32, device=self.policy.device)
        for micro_batch, old_logprobs_N in zip(micro_batches, old, strict=True):
            scores = self._score(micro_batch)
            if is_supervised:
                loss_N = cross_entropy(scores.logprobs_N)
            else:
                loss_N = self._policy_gradient(micro_batch, scores, old_logprobs_N, weight, log)
            micro_loss = (loss_N * weight).sum()
            (micro_loss * scale).backward()
            log.losses.append(micro_loss.detach())
            log.entropies.append(scores.entropy_N)
            count.add()
        loss = sum(torch.stack(log.losses).tolist())
        flat.grad_D.div_(scale)
        grad_norm = norm(flat.grad_D)
        if not (math.isfinite(loss) and bool(grad_norm.isfinite())):
            raise NonFiniteError(
                f"at step {self.policy.version} the loss is {loss} and the gradient's norm {float(grad_norm)}; "
                "the policy keeps its last good version. Go on from an earlier step with --branch NEW_DIR and a lower "
                "--optimizer.learning-rate or another --seed."
            )
        if check_tokens is not None:
            check_tokens(
                TrainedTokens(
                    completions=batch.completions,
                    trainer_logprobs_N=torch.cat(log.trainer_logprobs).cpu(),
                    sampler_logprobs_N=torch.cat(log.sampler_logprobs).cpu(),
                    entropies_N=torch.cat(log.entropies).cpu(),
                )
            )
        metrics = token_metrics(log) | {"loss/value": loss, "optimizer/grad_norm": float(grad_norm)}
        if self._loss.kl_coefficient:
            metrics["loss/kl_to_base"] = sum(torch.stack(log.kls_to_base).tolist())
        self._apply(grad_norm)
        return metrics

    def _policy_gradient(
        self,
        micro_batch: MicroBatch,
        scores: TokenScores,
        old_logprobs_N: torch.Tensor,
        weight: torch.Tensor,
        log: TokenLog,
    ) -> torch.Tensor:
        """Return the loss (N) of tokens that a sampler drew, and note what is logged of them."""
        inputs = LossInputs(
            logprobs_N=scores.logprobs_N,
            sampler_logprobs_N=micro_batch.sampler_logprobs_N,
            old_logprobs_N=old_logprobs_N,
            advantages_N=micro_batch.advantages_N,
            completion_N=micro_batch.completion_N,
        )
        outputs = find_loss(self._loss.name)(inputs, self._loss)
        loss_N = outputs.loss_N
        if self._loss.kl_coefficient:
            with torch.no_grad(), self.policy.adapter_off():
                base_logprobs_N = self._score(micro_batch).logprobs_N
            kl_N = k3(scores.logprobs_N, base_logprobs_N)
            loss_N = loss_N + self._loss.kl_coefficient * kl_N
            log.kls_to_base.append((kl_N.detach() * weight).sum())
        log.trainer_logprobs.append(inputs.logprobs_N.detach())
        log.sampler_logprobs.append(inputs.sampler_logprobs_N)
        for name, values_N in outputs.logged.items():
            log.of_loss[name].append(values_N.detach())
        return loss_N

    def _apply(self, grad_norm: torch.Tensor) -> None:
        applied = float(grad_norm)
        if self._config.max_grad_norm > 0:
            self.policy.flat.grad_D.mul_((self._config.max_grad_norm / (grad_norm + 1e-12)).clamp(max=1.0))
            applied = min(applied, self._config.max_grad_norm)
        rate = learning_rate_at(self._config, self.policy.version)
        is_doubtful = not self._optimizer.stays_finite(rate, applied)
        with self._unchanged_on_error(is_on=is_doubtful and self._has_one_large_update):
            self._optimizer.step(rate)
            if is_doubtful and not self._optimizer.is_finite():
                raise NonFiniteError(
                    f"at step {self.policy.version} the update made numbers of the policy that are not finite (rate "
                    f"{rate:g}, gradient's norm {float(grad_norm):g}, epsilon {self._config.epsilon:g}); the policy "
                    "keeps its last good version. Go on from an earlier step with --branch NEW_DIR and a lower "
                    "--optimizer.learning-rate, or an --optimizer.epsilon above 0."
                )
        self.policy.refresh_served()


def _is_of_last_update(name: str) -> bool:
    """Return whether a metric of a step with several updates is the last one's: the norm, and what the loss logs."""
    return name == "optimizer/grad_norm" or (name.startswith("loss/") and name not in ("loss/value", "loss/kl_to_base"))
