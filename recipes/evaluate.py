"""Score a policy on AIME and other benchmarks, beside its base: the same code as `rlora eval`.

    python recipes/evaluate.py --run runs/gsm8k --benchmark aime2024,aime2025,math500,gsm8k --samples 32
    python recipes/evaluate.py --adapter FOLDER --model Qwen/Qwen3-1.7B-Base --benchmark aime2026
    python recipes/evaluate.py --preset cpu --benchmark aime2024,aime2025,aime2026     (the bundled 135M model)
    python recipes/evaluate.py --preset toy                                            (random weights; for tests)

Hardware: one GPU for the defaults (32 samples of at most 8192 tokens), which no run of this code has tried yet; two CPU
cores and 5 GB for the cpu preset (4 samples of at most 256 tokens). The bundled 135M model, SmolLM2-135M-Instruct in
4-bit weights dequantised, solved none of AIME 2024, 2025 and 2026, 0.0 % [0.0, 9.7] each; with 4 samples of at most 64
tokens the three took 91 s on two cores, policy and base together.

From the literature, not from a run of this code: full fine-tuning of Qwen2.5-7B on DeepMath goes from 7.7 to 20.4 % on
AIME 2024 and from 5.4 to 17.5 % on AIME 2025, avg@16 (DeepMath-103K, arXiv 2504.11456).
"""

import sys

from rlora.commands.cli import main
from rlora.evaluation.config import PRESETS

__all__ = ["PRESETS"]

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])
