"""Where the memory of one GPU goes when trainer and vLLM share it: planned before anything large is loaded or sampled.

The same rule serves a run, which passes what is free on its card and what a short row was measured to save, and `rlora
check --gpu`, which passes a card's size and `rlora.train.batch_memory`'s numbers. Left out: memory of other processes
that changes while a run goes on; running out of it is what `rlora.train.token_budget` is for.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from rlora.errors import OutOfMemoryError
from rlora.train.batch_memory import BatchMemory, DecoderSizes
from rlora.train.card import GIB, Card

_GRAPHS = int(0.8 * GIB)  # the engine's CUDA graphs and buffers; calculated, since no card has shown it yet
_RESERVED = 0.04  # of the card: what lies unused between blocks
_SAFETY = 1.1  # of a micro-batch's memory on paper: measured peaks lie within 15 % of it
_MAX_SEQUENCES = 1024  # vLLM's own default on large cards
_LEAST_SEQUENCES = 16
_CACHE_ITEMSIZE = 2  # keys and values of 16-bit models, which are all that vLLM serves with adapters on a GPU
SEQUENCES = 256  # at once where no memory says otherwise
_USUAL_SHARE = 4  # a completion is assumed to end after this part of its longest length: the rest may be preempted


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a run asks of the memory.

    Its longest row (prompt and completion) in training, the longest that is sampled, positions wanted in a micro-batch,
    completions wanted at once (0: by room) and in a step; bytes of the cache and at most of micro-batches, if given.
    """

    row_tokens: int
    max_length: int
    micro_batch_tokens: int
    num_sequences: int
    num_completions: int
    cache_bytes: int | None = None
    batch_bytes: int | None = None
    is_recomputed: bool = False
    least_tokens: int = 1024
    """Positions below which a micro-batch wastes more than computing layers again does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatches:
    """Positions of a micro-batch, the length above which a row's layers are computed again (None: none is), and the
    bytes that the largest takes.
    """

    tokens: int
    recompute_above: int | None
    num_bytes: int


def fit_micro_batches(
    num_bytes: float, workload: Workload, *, plain: BatchMemory, recomputed: BatchMemory
) -> MicroBatches:
    """Return the micro-batches that fit into `num_bytes`, the longest row among them.

    Only rows that do not fit otherwise have their layers computed again, unless that would leave very small
    micro-batches. Raises OutOfMemoryError when the longest row does not fit in either way.
    """
    row, most = workload.row_tokens, recomputed.positions(num_bytes / _SAFETY)
    if most < row:
        raise OutOfMemoryError(
            f"a row of {row:,} tokens (--sampler.max-prompt-tokens and --sampling.max-tokens) does not fit in "
            f"training: {num_bytes / GIB:.4g} GiB for micro-batches hold {most:,} positions even with layers computed "
            "again. Lower one of the two, or take a smaller model or more memory."
        )
    fitting = plain.positions(num_bytes / _SAFETY)
    if workload.is_recomputed or fitting < min(workload.least_tokens, row):
        tokens = min(workload.micro_batch_tokens, most)
        return MicroBatches(tokens=tokens, recompute_above=0, num_bytes=recomputed.of(max(tokens, row)))
    tokens = min(workload.micro_batch_tokens, fitting)
    largest = plain.of(min(max(tokens, row), fitting))
    if fitting >= row:
        return MicroBatches(tokens=tokens, recompute_above=None, num_bytes=largest)
    return MicroBatches(tokens=tokens, recompute_above=fitting, num_bytes=max(largest, recomputed.of(row)))


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """The parts of a card, in bytes, and what they hold.

    `taken` is what was in use before the engine starts (driver, the trainer's base), `is_shared` says that this is the
    engine's base too and that the cache gives way to the micro-batches. Rows of more than `recompute_above` positions
    have their layers computed again (None: no row needs it).
    """

    total: int
    taken: int
    engine_weights: int
    reserved: int
    batches: int
    cache: int
    is_shared: bool
    tokens: int
    row_tokens: int
    recompute_above: int | None
    cache_tokens: int
    num_sequences: int

    @property
    def peak(self) -> int:
        """The most that is in use at once, less what is kept in reserve."""
        held = max(self.batches, self.cache) if self.is_shared else self.batches + self.cache
        return self.taken + self.engine_weights + held

    @property
    def engine(self) -> dict[str, int]:
        """What the sampler's batches depend on, to be kept by a run that goes on."""
        return {"cache_bytes": self.cache, "num_sequences": self.num_sequences}

    def summary(self) -> str:
        """Return what is divided, in one line."""
        return (
            f"GPU memory: {self.total / GIB:.1f} GiB, of which micro-batches get {self.batches / GIB:.1f} "
            f"({self.tokens:,} positions{_recomputed(self.recompute_above)}) and the KV cache {self.cache / GIB:.1f} "
            f"({self.cache_tokens:,} tokens, {self.num_sequences} completions at once)"
        )

    def lines(self) -> Iterator[str]:
        """Yield the plan as a table for people, in GiB."""
        parts = {
            "driver and the trainer's base": self.taken,
            "the engine's base": self.engine_weights,
            "graphs of the engine, and in reserve": self.reserved,
            f"micro-batches of {self.tokens:,} positions": self.batches,
            f"KV cache of {self.cache_tokens:,} tokens, {self.num_sequences} completions at once": self.cache,
        }
        for name, num_bytes in parts.items():
            yield f"{num_bytes / GIB:6.1f}  {name}"
        yield f"{self.total / GIB:6.1f}  in all"
        if self.is_shared:
            yield "The engine's base is the trainer's too, and the cache gives way while a batch is trained."
        yield f"The longest row has {self.row_tokens:,} positions{_recomputed(self.recompute_above)}."


def _recomputed(above: int | None) -> str:
    if above is None:
        return ""
    rows = f"rows of more than {above:,} positions" if above else "all rows"
    return f"; layers of {rows} are computed again in the backward pass: much less memory, a third more time"


def plan_memory(
    card: Card,
    sizes: DecoderSizes,
    workload: Workload,
    *,
    batch_memory: tuple[BatchMemory, BatchMemory],
    weight_bytes: int,
    itemsize: int,
    is_shared: bool = False,
    has_started: bool = False,
) -> MemoryPlan:
    """Return how the rest of a card, on which the trainer's base lies already, is divided.

    `batch_memory` is that of layers kept and of layers computed again. Micro-batches get at most half of what they and
    the cache of the engine share, more only where the longest row needs it; all of that where they share one base and
    the cache gives way. An engine that `has_started` has its graphs already. Raises OutOfMemoryError for a model, or a
    row, that can never fit.
    """
    plain, recomputed = batch_memory
    engine_weights = 0 if is_shared else weight_bytes
    reserved = int(_RESERVED * card.total) + (0 if has_started else _GRAPHS)
    left = card.free - engine_weights - reserved
    token = sizes.cache_bytes(itemsize)
    least_cache = token * workload.max_length if workload.cache_bytes is None else workload.cache_bytes
    no_room = OutOfMemoryError(_no_room(card, engine_weights, reserved, least_cache, is_shared=is_shared))
    least_batch = recomputed.of(1)
    if left < (max(least_cache, least_batch) if is_shared else least_cache + least_batch):
        raise no_room
    most = left if is_shared else left - least_cache
    usual = most if is_shared or workload.cache_bytes is not None else left // 2
    needed = int(_SAFETY * recomputed.of(workload.row_tokens)) + 1
    limit = min(max(usual, needed), most, workload.batch_bytes or most)
    batches = fit_micro_batches(limit, workload, plain=plain, recomputed=recomputed)
    num_sequences = workload.num_sequences or _sequences(left, token, workload)
    cache = workload.cache_bytes
    if cache is None:
        passes = _engine_passes(sizes, workload, num_sequences)
        cache = left - max(passes, 0 if is_shared else int(_SAFETY * batches.num_bytes))
        if cache < least_cache:
            raise no_room
        cache = min(cache, least_cache * max(1, workload.num_completions))
    return MemoryPlan(
        total=card.total,
        taken=card.total - card.free,
        engine_weights=engine_weights,
        reserved=reserved,
        batches=batches.num_bytes,
        cache=cache,
        is_shared=is_shared,
        tokens=batches.tokens,
        row_tokens=workload.row_tokens,
        recompute_above=batches.recompute_above,
        cache_tokens=cache // token,
        num_sequences=num_sequences,
    )


def plan_evaluation(
    card: Card, sizes: DecoderSizes, *, max_length: int, num_sequences: int, num_completions: int, weight_bytes: int
) -> tuple[int, int]:
    """Return the bytes of the cache and the completions at once of an engine beside which nothing is trained.

    Raises OutOfMemoryError where the engine does not fit beside what is on the card.
    """
    nothing = BatchMemory(kept=1, temporary=0, logits=0)
    workload = Workload(
        row_tokens=1,
        max_length=max_length,
        micro_batch_tokens=1,
        num_sequences=num_sequences,
        num_completions=num_completions,
    )
    plan = plan_memory(
        card, sizes, workload, batch_memory=(nothing, nothing), weight_bytes=weight_bytes, itemsize=_CACHE_ITEMSIZE
    )
    return plan.cache, plan.num_sequences


def _sequences(left: int, token: int, workload: Workload) -> int:
    """Return how many completions are generated at once: as many as half of what is left holds at their usual length,
    a multiple of 8.
    """
    usual = max(1, workload.max_length // _USUAL_SHARE)
    fitting = left // 2 // (token * usual) // 8 * 8
    return max(_LEAST_SEQUENCES, min(fitting, _MAX_SEQUENCES, -(-workload.num_completions // 8) * 8))


def prefill_tokens(max_length: int) -> int:
    """Return how many prompt tokens an engine computes at once on a GPU: no more than prompts have (docs/gpu.md)."""
    return max(4096, min(max_length, 8192))


def _engine_passes(sizes: DecoderSizes, workload: Workload, num_sequences: int) -> int:
    """Return what the engine's passes take while they run: a prefill's activations in 16 bits and fp32 logits."""
    activations = 2 * (3 * sizes.inner + 4 * sizes.hidden + 2 * (sizes.query + 2 * sizes.key))
    return prefill_tokens(workload.max_length) * activations + 3 * num_sequences * sizes.vocabulary * 4


def _no_room(card: Card, weights: int, reserved: int, cache: int, *, is_shared: bool) -> str:
    share = "" if is_shared else ", or share one copy of the base (--sampler.share-base on)"
    return (
        f"{card.free / GIB:.1f} of {card.total / GIB:.1f} GiB of GPU memory are free beside the trainer's base. "
        f"vLLM needs {weights / GIB:.1f} for its copy of the base and {reserved / GIB:.1f} for graphs and in reserve, "
        f"its cache at least {cache / GIB:.1f}, and a micro-batch the rest. Take a smaller model or a larger "
        f"card{share}."
    )
