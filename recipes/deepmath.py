"""`rlora train deepmath` as a script: python recipes/deepmath.py [options]."""

from rlora.recipe import main
from rlora.recipes import deepmath

PRESETS = deepmath.PRESETS

if __name__ == "__main__":
    main(PRESETS, description=deepmath.__doc__)
