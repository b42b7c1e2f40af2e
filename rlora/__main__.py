"""`python -m rlora` is the `rlora` command."""

from rlora.commands.cli import main

main()
