"""The other policies that one sampler serves, as the proof of one of them meets them."""

from collections.abc import Mapping
from typing import Protocol

from rlora.proof.canary import Canary


class Peers(Protocol):
    """The other policies on one sampler."""

    def exchange(self, canary: Canary) -> Mapping[str, Canary]:
        """Give this policy's canary, and return those of the others that were drawn in the same call, by name."""
        ...


class _Nobody:
    def exchange(self, canary: Canary) -> Mapping[str, Canary]:
        return {}


ALONE: Peers = _Nobody()
"""Those of a policy that has a sampler to itself."""
