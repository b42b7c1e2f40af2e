"""`rlora train gsm8k` as a script: python recipes/gsm8k.py [options]."""

from rlora.recipe import main
from rlora.recipes import gsm8k

PRESETS = gsm8k.PRESETS

if __name__ == "__main__":
    main(PRESETS, description=gsm8k.__doc__)
