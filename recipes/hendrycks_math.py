"""`rlora train math` as a script: python recipes/hendrycks_math.py [options]."""

from rlora.recipe import main
from rlora.recipes import hendrycks_math

PRESETS = hendrycks_math.PRESETS

if __name__ == "__main__":
    main(PRESETS, description=hendrycks_math.__doc__)
