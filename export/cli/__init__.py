"""The command line: one module a command. Nothing outside this package prints."""
