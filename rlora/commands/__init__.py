"""The subcommands of `rlora`, a file each: a docstring that is its help, and `main(arguments)`."""
