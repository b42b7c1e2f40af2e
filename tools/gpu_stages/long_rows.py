"""The trainer alone on long rows, and one layer's attention by a dense mask and by blocks."""

import statistics
from collections.abc import Callable
from typing import Any

from gpu_stages.models import PEAK_FLOP, flop_per_position, random_model
from gpu_stages.stage import CheckError, Clock, Context, used_memory

_LENGTHS, _TINY_LENGTHS = (2048, 8192, 16384, 32768), (64, 128)
_ATTENTION_LENGTH = 8192  # a dense mask of it has 67 million entries
_MAX_DIFFERENCE = 0.05  # of outputs of order 1 in bfloat16


def long_rows(context: Context) -> None:
    """Seconds, memory and MFU of a pass with layers computed again; then attention alone, on such a row."""
    import torch

    from rlora.lora.config import LoraConfig
    from rlora.model.sources import ModelConfig
    from rlora.system.memory import recompute_layers
    from rlora.train.policy import Policy

    words = []
    for shape in ("qwen3-1.7b", "qwen3-8b"):
        folder = random_model(context, shape)
        dtype: Any = "float32" if context.is_tiny else "bfloat16"
        policy = Policy.load(folder, ModelConfig(name=str(folder), dtype=dtype, compile="off"), LoraConfig(), seed=0)
        recompute_layers(policy.model)
        records = _passes(context, policy, shape)
        words.append(f"{shape} up to {records[-1]['positions']} positions, MFU {records[-1]['mfu']:.2f}")
        config, device, length = policy.model.config, policy.device, min(_ATTENTION_LENGTH, records[-1]["positions"])
        del policy
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        ratio = _attention(context, shape, config, device, getattr(torch, dtype), length=length)
        words.append(f"dense mask {ratio:.1f} x the time of blocks")
    context.say(headline="; ".join(words))


def _passes(context: Context, policy: Any, shape: str) -> list[dict[str, Any]]:
    """Return a record for each length until memory runs out; CheckError when not even the first fits."""
    from rlora.train.token_budget import is_out_of_memory

    records: list[dict[str, Any]] = []
    for length in _TINY_LENGTHS if context.is_tiny else _LENGTHS:
        try:
            records.append({"shape": shape} | _pass(policy, length))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            context.say(shape=shape, length=length, out_of_memory=str(error)[:200], **used_memory())
            break
        context.say(**records[-1])
    if not records:
        raise CheckError(f"not even the shortest row fits at the shape of {shape}")
    return records


def _row(length: int) -> Any:
    """Return a micro-batch of one row of about `length` positions: a prompt and four completions."""
    from rlora.train.batching import made_up_row, stack

    prompt = min(128, length // 4)
    return stack([made_up_row(prompt, (length - prompt) // 4 + 1, num_completions=4)])


def _pass(policy: Any, length: int) -> dict[str, Any]:
    batch, clock, seconds = _row(length).to(policy.device), Clock(), []
    for _ in range(2):
        policy.flat.zero_grad()
        with clock.timed("pass"):
            policy.score(batch).logprobs_N.sum().backward()
        seconds.append(clock.seconds["pass"])
    positions, best = batch.tokens_BT.numel(), min(seconds)
    flop = flop_per_position(policy.model.config, recompute=True) * positions
    return {
        "positions": positions,
        "pass_s": round(best, 3),
        "positions_per_s": round(positions / best),
        "mfu": round(flop / best / PEAK_FLOP, 4),
        "peak_gib": clock.peak_gib,
    }


def _attention(context: Context, shape: str, config: Any, device: Any, dtype: Any, *, length: int) -> float:
    """Time one layer's attention over a packed row both ways (on the CPU forward alone), compare, return the ratio."""
    import torch

    torch.manual_seed(0)
    segments = _row(length).segments_BT.to(device)
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    has_gpu = device.type == "cuda"
    tensors = [
        torch.randn(1, count, segments.shape[1], config.head_dim, device=device, dtype=dtype, requires_grad=has_gpu)
        for count in heads
    ]
    outputs, times, clock = {}, {}, Clock()
    for kind, attend in attention_variants(segments, has_gpu=has_gpu).items():
        seconds = []
        for _ in range(5):
            with clock.timed(kind):
                outputs[kind] = attend(*tensors)
                if has_gpu:
                    outputs[kind].sum().backward()
            seconds.append(clock.seconds[kind])
        times[kind] = statistics.median(seconds)
    difference = float((outputs["dense"] - outputs["blocks"]).abs().max())
    context.say(
        attention=shape,
        positions=segments.shape[1],
        ms={kind: round(1e3 * value, 2) for kind, value in times.items()},
        max_difference=difference,
    )
    if not difference <= _MAX_DIFFERENCE:
        raise CheckError(f"attention by blocks differs from the dense mask's by {difference}")
    return times["dense"] / times["blocks"]


def attention_variants(segments_BT: Any, *, has_gpu: bool) -> dict[str, Callable[..., Any]]:
    """Return attention over one row of `segments_BT` (1, T): by a dense mask, and by blocks of it (flex attention)."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    from rlora.model.attention import visibility_mask

    length, of = segments_BT.shape[1], segments_BT[0]
    mask = visibility_mask(segments_BT)

    def is_seen(_batch: Any, _head: Any, query: Any, key: Any) -> Any:
        return (key <= query) & ((of[key] == of[query]) | ((of[key] == 0) & (of[query] > 0)))

    blocks = create_block_mask(is_seen, 1, None, length, length, device=str(segments_BT.device))
    by_blocks: Any = torch.compile(flex_attention) if has_gpu else flex_attention

    def dense(query: Any, key: Any, value: Any) -> Any:
        shared = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(shared, 1) for tensor in (key, value))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    return {
        "dense": dense,
        "blocks": lambda query, key, value: by_blocks(query, key, value, block_mask=blocks, enable_gqa=True),
    }
