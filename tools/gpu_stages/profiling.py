"""Where a decoding step's time goes: the device's busy share while sampling, and the host's longest functions."""

import cProfile
import pstats
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_stages.setting import problems
from gpu_stages.stage import Clock, Context

_NUM_KERNELS, _NUM_FUNCTIONS = 12, 15
_COMPLETIONS, _TOKENS = 256, 64


def profile_sampling(context: Context, parts: Any, config: Any) -> None:
    """Sample twice, under PyTorch's profiler of the device and under Python's of the host."""
    import torch

    activity = torch.profiler.ProfilerActivity
    chosen = problems(4 if context.is_tiny else max(1, _COMPLETIONS // config.samples_per_problem))
    sampling = replace(config.sampling, max_tokens=min(_TOKENS, config.sampling.max_tokens))

    def draw() -> None:
        parts.engine.sample(chosen, sampling, num_samples=config.samples_per_problem, seed=1, key=("profile",))

    has_gpu, clock = torch.cuda.is_available(), Clock()
    with (
        torch.profiler.profile(activities=[activity.CUDA if has_gpu else activity.CPU]) as profile,
        clock.timed("sample"),
    ):
        draw()
    of_device = {
        event.key: ((event.self_device_time_total if has_gpu else event.self_cpu_time_total) / 1e6, event.count)
        for event in profile.key_averages()
    }
    busy_s = sum(seconds for seconds, _ in of_device.values())
    longest = sorted(of_device.items(), key=lambda item: item[1], reverse=True)[:_NUM_KERNELS]
    context.say(
        profile="device",
        sample_s=round(clock.seconds["sample"], 3),
        busy_share=round(busy_s / clock.seconds["sample"], 3),
        kernels=[[name[:60], round(1e3 * seconds, 1), count] for name, (seconds, count) in longest],
        headline=f"device busy {busy_s / clock.seconds['sample']:.0%} while sampling",
    )
    host = cProfile.Profile()
    host.runcall(draw)
    functions: dict[Any, Any] = pstats.Stats(host).stats
    by_own_time = sorted(functions.items(), key=lambda item: item[1][2], reverse=True)[:_NUM_FUNCTIONS]
    context.say(
        profile="host",
        functions=[
            [f"{Path(file).name}:{line}:{name}", round(own_s, 3), calls]
            for (file, line, name), (_, calls, own_s, _, _) in by_own_time
        ],
    )
