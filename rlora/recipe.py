"""What a recipe script calls: command line in, run directory out, errors as one readable message."""

import sys
from collections.abc import Mapping

from transformers.utils.logging import disable_progress_bar

from rlora.config import cli
from rlora.errors import RloraError
from rlora.loop import run
from rlora.run_config import RunConfig


def main(presets: Mapping[str, RunConfig], *, description: str | None) -> None:
    """Run the recipe that the command line describes.

    Exit codes: 0 done, 1 an error that the message explains, 2 a wrong option, 130 interrupted.
    """
    config = cli(presets, description=description or "")
    disable_progress_bar()  # of Transformers, whose bars for loading weights would break up the display
    try:
        run(config)
    except RloraError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        print(
            f"Interrupted. What was finished is in {config.run_dir}: the newest policy in adapter/, metrics, rollouts.",
            file=sys.stderr,
        )
        raise SystemExit(130) from None
