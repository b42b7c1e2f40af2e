"""What is found of a run: a disease, how it is seen, and what to do."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A disease of a run. `what` begins with a clause that can stand alone, and has its figures behind a colon.

    Example:
        >>> found = Finding(name="truncation", what="61 % are cut off: at 32 tokens", remedy="Raise the limit.")
        >>> found.headline
        '61 % are cut off'
    """

    name: str
    """One word: "no_signal", "truncation" and so on, as in docs/diagnosis.md."""
    what: str
    """One sentence with the figures: what is seen."""
    remedy: str
    """One sentence: what to do, with the option to give."""
    since: int | None = None
    """The step from which it is so, None where it is no matter of steps."""
    examples: tuple[str, ...] = ()
    """Up to three rollouts or answers that show it, a line each."""

    @property
    def headline(self) -> str:
        """What is seen, in one clause."""
        return self.what.partition(": ")[0]

    def lines(self) -> Iterator[str]:
        """Yield it as a person reads it on a terminal."""
        yield f"{self.name}: {self.what}"
        yield from (f"  e.g. {example}" for example in self.examples)
        yield f"  To do: {self.remedy}"


def per_cent(share: float) -> str:
    """Return a share as it is written in a sentence.

    Example:
        >>> per_cent(0.5), per_cent(0.0123), per_cent(0.00046)
        ('50 %', '1.2 %', '0.05 %')
    """
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.1f} %" if value >= 1 else f"{value:.2g} %"
