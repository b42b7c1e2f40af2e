"""Judge answers against gold answers."""

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> None:
    """Run `rlora verify`."""
    raise NotImplementedError
