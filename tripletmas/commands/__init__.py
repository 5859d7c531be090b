"""The commands: each parses its own options, calls the library, and prints."""

from tripletmas.commands.export import export
from tripletmas.commands.importance import importance
from tripletmas.commands.indexing import index
from tripletmas.commands.query import query
from tripletmas.commands.scoring import compare, evaluate, report
from tripletmas.commands.training import resume, search, train

__all__ = [
    "compare",
    "evaluate",
    "export",
    "importance",
    "index",
    "query",
    "report",
    "resume",
    "search",
    "train",
]
