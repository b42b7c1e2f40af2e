"""Show a run that goes on as a live page."""

import os
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rlora.config import with_home
from rlora.errors import ConfigError
from rlora.report.live import LiveRun
from rlora.report.server import LiveServer
from rlora.report.write import MAX_ROLLOUTS
from rlora.store.cohort_dir import member_dir
from rlora.system.screen import say

DESCRIPTION = """\
Show a run as the page of `rlora report`, which grows while the run goes on.

It reads the run's directory only, so the run does not notice. The page is served on this machine alone unless --host
says otherwise, and to whoever has the token in its address. Ctrl-C ends it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOptions:
    """The options of `rlora watch`."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run directory; a member of a cohort is COHORT:MEMBER."""
    port: int = 8421
    """Port of the page; 0 for any that is free."""
    host: str = "127.0.0.1"
    """Address to listen on. Any other than this one lets other machines see the page, unencrypted."""
    open: bool = False
    """Open it in this machine's browser."""
    max_rollouts: int = MAX_ROLLOUTS
    """At most so many rollouts of what is there when it starts."""

    def check(self) -> None:
        """Raise ConfigError for a value that breaks a rule."""
        if not 0 <= self.port < 65536:
            raise ConfigError(f"--port is {self.port}; it must be from 0 to 65535.")
        if self.max_rollouts < 1:
            raise ConfigError(f"--max-rollouts is {self.max_rollouts}; it must be at least 1.")


def main(arguments: Sequence[str]) -> None:
    """Run `rlora watch` until Ctrl-C."""
    options = with_home(tyro.cli(WatchOptions, args=arguments, prog="rlora watch", description=DESCRIPTION))
    options.check()
    with suppress(OSError):
        os.nice(19)  # what is watched goes first
    live = LiveRun(member_dir(options.run), max_rollouts=options.max_rollouts)
    with LiveServer(live, host=options.host, port=options.port) as server:
        if options.host not in ("127.0.0.1", "localhost", "::1"):
            say("Warning: other machines can reach the page, and what it says travels unencrypted.")
        say(f"{live.path} is shown at\n  {server.address}\nCtrl-C ends this; the run goes on.")
        if options.open:
            webbrowser.open(server.address)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
