"""Count what vLLM finishes while it generates: between its steps, without a word of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rlora.system.progress import counting


@contextmanager
def counted_steps(engine: Any, num_completions: int) -> Iterator[None]:
    """Count completions and their tokens after each step of an `LLMEngine` within the block.

    A request that asks for several completions is one of vLLM's requests for each, and says its tokens when the last of
    them is done; how many are done is known after every step. An engine that does not step in this process is not
    counted.
    """
    if (step := getattr(engine, "step", None)) is None:
        yield
        return
    with counting("completions", num_completions) as count:
        own = vars(engine).get("step")  # of this object alone

        def counted_step() -> Any:
            outputs = step()
            tokens = sum(len(one.token_ids) for each in outputs if each.finished for one in each.outputs)
            count.add(num_completions - engine.get_num_unfinished_requests() - count.done, tokens=tokens)
            return outputs

        engine.step = counted_step
        try:
            yield
        finally:
            if own is None:
                del engine.step
            else:
                engine.step = own
