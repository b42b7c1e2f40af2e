"""The other policies that one sampler serves, as the proof of one of them meets them."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from rlora.proof.canary import Canary
from rlora.proof.rehearsal import Rehearsal


class Peers(Protocol):
    """The other policies on one sampler."""

    def exchange(self, canary: Canary) -> Mapping[str, Canary]:
        """Give this policy's canary, and return those of the others that were drawn in the same call, by name."""
        ...

    def rehearsal(
        self, kind: Any, rehearse: Callable[[], Rehearsal], follow: Callable[[Rehearsal, int], Rehearsal]
    ) -> Rehearsal:
        """Return what the engine was shown to do with this policy: by `rehearse`, or, where one of its kind has been
        rehearsed, by `follow`, which is told that rehearsal and this policy's place in the engine.
        """
        ...


class _Nobody:
    def exchange(self, canary: Canary) -> Mapping[str, Canary]:
        return {}

    def rehearsal(
        self, kind: Any, rehearse: Callable[[], Rehearsal], follow: Callable[[Rehearsal, int], Rehearsal]
    ) -> Rehearsal:
        return rehearse()


ALONE: Peers = _Nobody()
"""Those of a policy that has a sampler to itself."""
