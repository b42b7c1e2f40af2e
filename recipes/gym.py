"""Train on any task of the package reasoning-gym (pip install 'rlora[gym]'), rewarded by the task's own scorer.

    rlora train recipes/gym.py --data reasoning_gym:chain_sum
    rlora train recipes/gym.py --data reasoning_gym:countdown --reward correct=1.0 length=-0.001
    rlora train recipes/gym.py --preset toy           (random weights, seconds; for tests)

Problems are generated: 1,000 to train on and 200 others for the test. Not named after the package, which a script of
that name would hide. No result is stated: what a model learns here was not measured.
"""

from dataclasses import replace

from rlora.recipe import main
from rlora.recipes import arithmetic
from rlora.tasks import DataConfig
from rlora.types import SamplingParams

CHANGES = {"data": DataConfig(name="reasoning_gym:chain_sum"), "consensus_penalty": 0.0}
CPU = replace(
    arithmetic.CPU,
    run_dir="runs/gym",
    sampling=SamplingParams(max_tokens=160),
    sampler=replace(arithmetic.CPU.sampler, max_prompt_tokens=512),
    **CHANGES,
)
TOY = replace(
    arithmetic.TOY_PRESET,
    run_dir="runs/gym-toy",
    evaluation=replace(arithmetic.TOY_PRESET.evaluation, num_problems=4),
    **CHANGES,
)
PRESETS = {"cpu": CPU, "toy": replace(TOY, sampler=replace(TOY.sampler, max_prompt_tokens=400))}

if __name__ == "__main__":
    main(PRESETS, description=__doc__)
