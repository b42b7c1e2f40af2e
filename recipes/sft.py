"""`rlora train sft` as a script: python recipes/sft.py [options]."""

from rlora.recipes import sft
from rlora.supervised.recipe import main

PRESETS = sft.PRESETS

if __name__ == "__main__":
    main(PRESETS, description=sft.__doc__)
