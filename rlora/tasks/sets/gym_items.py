"""Writes items of reasoning-gym as JSON, in a process of its own: some of its tasks draw by Python's hashes of texts,
which must be the same in each process for the same items (PYTHONHASHSEED).

Run by its path, so that nothing of rlora is imported.
"""

import json
import sys


def main() -> None:
    """Write [question, answer] of each item; the arguments are the task's name, the seed and the number of items."""
    import reasoning_gym

    name, seed, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    items = reasoning_gym.create_dataset(name, seed=seed, size=size)
    json.dump([[item["question"], str(item["answer"])] for item in items], sys.stdout)


if __name__ == "__main__":
    main()
