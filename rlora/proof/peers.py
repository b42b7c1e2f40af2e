"""The other policies that one sampler serves, as the proof of one of them meets them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rlora.proof.canary import Canary
from rlora.proof.rehearsal import Rehearsal


class Peers(Protocol):
    """What policies on one sampler tell one another: which canaries they drew, and what the engine was shown to do."""

    def exchange(self, canary: Canary) -> Mapping[str, Canary]:
        """Give this policy's canary, and return those of the others that were drawn in the same call, by name."""
        ...

    def rehearsal(self, key: Any, rehearse: Callable[[], Rehearsal]) -> Rehearsal:
        """Return what the engine was shown to do with policies of one kind, by a rehearsal if nobody had one yet."""
        ...


@dataclass(frozen=True, slots=True)
class _Alone:
    def exchange(self, canary: Canary) -> Mapping[str, Canary]:
        return {}

    def rehearsal(self, key: Any, rehearse: Callable[[], Rehearsal]) -> Rehearsal:
        return rehearse()


ALONE: Peers = _Alone()
"""Those of a policy that has a sampler to itself."""
