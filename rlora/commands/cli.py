"""The `rlora` command: runs, and tools on runs and answers."""

import sys
import time
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module, metadata
from types import ModuleType

from rlora.errors import RloraError, message_of

COMMANDS = {
    "train": "train a policy by a recipe, or go on with a run that was stopped",
    "sweep": "train a cohort of policies on one base at once: rates, seeds, ranks",
    "eval": "score a policy on benchmarks, beside its base",
    "check": "say why a run does not learn, or what a run would do, before it is started",
    "report": "write runs as one HTML page: charts, diagnosis, rollouts",
    "watch": "show a run that goes on as a live page in a browser",
    "runs": "list runs with step, reward, age and state",
    "export": "write a run's policy as an adapter or a merged model, with a card",
    "verify": "judge answers against gold answers, and say why",
}

_SILENT = {"-h", "--help", "--quiet", "--tracking.quiet"}
_SLOW = ("train", "sweep", "eval", "check", "report", "watch", "export")
_REQUIRED = {
    "bokeh", "datasets", "latex2mathml", "matplotlib", "mpmath", "numpy", "psutil", "rich", "safetensors", "torch",
    "transformers", "tyro",
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the subcommand that the first word names.

    Exit codes: 0 done, 1 an error that the message explains, 2 a wrong command or option, 130 interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(_usage())
        return
    if given[0] in ("--version", "-V"):
        print(f"rlora {metadata.version('rlora')}")
        return
    name, *rest = given
    if name not in COMMANDS:
        meant = get_close_matches(name, COMMANDS, n=1)
        hint = f" Did you mean rlora {meant[0]}?" if meant else ""
        print(f"rlora has no command {name!r}.{hint}\n{_usage()}", file=sys.stderr)
        raise SystemExit(2)
    try:
        _imported(name, rest).main(rest)
    except RloraError as error:
        print(message_of(error), file=sys.stderr)
        raise SystemExit(1) from error
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _REQUIRED:
            raise  # a user's module lacks something
        print(f"rlora {name} needs {error.name}, which is not installed: pip install rlora.", file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        raise SystemExit(130) from None


def _imported(name: str, arguments: Sequence[str]) -> ModuleType:
    """Return a command's module, and say on a terminal that it is imported, since PyTorch takes seconds."""
    is_said = name in _SLOW and sys.stderr is not None and sys.stderr.isatty() and not _SILENT & set(arguments)
    start = time.monotonic()
    if is_said:
        print("Importing PyTorch and Transformers ...", end="", file=sys.stderr, flush=True)
    try:
        return import_module(f"rlora.commands.{name}")
    finally:
        if is_said:
            print(f" {time.monotonic() - start:.1f} s", file=sys.stderr)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(["Usage: rlora COMMAND [options]; rlora COMMAND --help explains.", "", *lines])
