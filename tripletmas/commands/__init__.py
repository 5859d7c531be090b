"""The commands: each parses its own options, calls the library, and prints."""

from tripletmas.commands.importance import importance
from tripletmas.commands.scoring import compare, evaluate, report
from tripletmas.commands.training import resume, search, train

__all__ = ["compare", "evaluate", "importance", "report", "resume", "search", "train"]
