"""The subcommands of `dod-runtime`."""
