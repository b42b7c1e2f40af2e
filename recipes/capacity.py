"""How many bits a policy holds, by rank: python recipes/capacity.py [options], the same as rlora.recipes.capacity."""

from rlora.recipes import capacity

PRESETS = capacity.PRESETS

if __name__ == "__main__":
    capacity.main()
