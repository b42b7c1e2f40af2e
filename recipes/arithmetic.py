"""`rlora train arithmetic` as a script: python recipes/arithmetic.py [options]."""

from rlora.recipe import main
from rlora.recipes import arithmetic

PRESETS = arithmetic.PRESETS

if __name__ == "__main__":
    main(PRESETS, description=arithmetic.__doc__)
