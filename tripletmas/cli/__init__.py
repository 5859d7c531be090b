"""Words on a terminal: a command a file."""
