"""Parts of sentences that errors and warnings say: lists of names, the nearest known name, a value of a wrong type."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_REFUSED = re.compile(
    r'Parser key "(?P<key>[^"]+)": '
    r"(?:.*Subtypes: \[(?P<several>.*)\] Errors: .* Given value|Expected a (?P<one>.*)\. Got value): ?(?P<value>.*)"
)
_NEEDED = re.compile(r"the following arguments are required: (\w+\.\S+)")  # of a part, which it calls data.root

_LIKE_YOU = ("uni", "use", "eu", "one", "utf")  # begin with a vowel that is not said as one


def listed(names: Iterable[str], most: int = 8) -> str:
    """The names with commas between them; a long list is cut and counted."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def not_text(error: UnicodeDecodeError) -> str:
    """What is said of a file that is not in UTF-8, behind its name."""
    return f"is not UTF-8 text ({error}): save it as UTF-8"


def one_line(name: object) -> str:
    r"""A name, as of a file, in whose place a sentence stays one line.

    >>> print(one_line("a\nb"))
    a\nb
    """
    return str(name).replace("\n", r"\n").replace("\r", r"\r")


def counted(count: int, what: str) -> str:
    """ "1 epoch", "12 epochs"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def with_article(name: str) -> str:
    """A name, as of a class, after "a" or "an", as it is said: letters by themselves where they make no syllable.

    >>> with_article("AdamW"), with_article("SGD"), with_article("NAdam"), with_article("MAS"), with_article("UNet")
    ('an AdamW', 'an SGD', 'an NAdam', 'a MAS', 'a UNet')
    """
    capitals = re.match(r"[A-Z]*(?![a-z])", name)
    letters = capitals.group() if capitals else ""
    if letters and not set(letters[1:]) & set("AEIOUY") and letters[0] not in "AEIO":
        vowel = letters[0] in "FHLMNRSX"  # spelled: ef, aitch, el, ...
    else:
        vowel = name[:1].lower() in "aeiou" and not name.lower().startswith(_LIKE_YOU)
    return f"{'an' if vowel else 'a'} {name}"


def suggestion(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or the known names, 30 at most, where none is near.

    >>> suggestion("strenght", ["strength", "decay"])
    " (did you mean 'strength'?)"
    >>> suggestion("zzz", ["strength", "decay"])
    ' (known: strength, decay)'
    """
    known = list(known)
    if near := nearest(name, known):
        return f" (did you mean {near!r}?)"
    return f" (known: {', '.join(known[:30]) or 'none'}{', ...' if len(known) > 30 else ''})"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was likely meant, if there is one."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def short(name: str) -> str:
    """What a part is called on pages and in folders: of one that says where its code lies, the last word.

    >>> short("/home/me/mine.py:Mine"), short("mas+distill")
    ('Mine', 'mas+distill')
    """
    return name.rpartition(":")[2]


def refused(error: Exception, *, hyphens: bool = False) -> str:
    r"""What jsonargparse says of a value of a wrong type, in a sentence; other messages in one line.

    Args:
        hyphens: whether the option is written so, where it calls its value `min_score`.

    >>> refused(ValueError('Parser key "training.lr":\n  Expected a <class \'float\'>. Got value: fast'))
    "--training.lr takes float, not 'fast'"
    >>> refused(ValueError('Parser key "k": Expected a <class \'int\'>. Got value: NestedArg(key=\'x\', val=1)'))
    "unknown option '-k.x': -k has none of its own"
    >>> refused(ValueError("the following arguments are required: data.root"))
    '--data.root is needed'
    """
    message = " ".join(str(error).split())
    match = _REFUSED.fullmatch(message)
    if not match:
        return _NEEDED.sub(r"--\1 is needed", message)
    option = _option(match["key"].replace("_", "-") if hyphens else match["key"])
    if nested := re.match(r"NestedArg\(key='([^']*)'", match["value"]):
        return f"unknown option '{option}.{nested[1]}': {option} has none of its own"
    types = re.sub(r"typing\.Literal\[(.*?)\]", r"\1", match["several"] or match["one"])
    for theirs, ours in (("<class 'NoneType'>", "null"), ("<class 'tuple'>", "list"), ("<class '", ""), ("'>", "")):
        types = types.replace(theirs, ours)
    names = [name.strip(" '") for name in re.split(r", (?![^\[]*\])", types)]  # list[int, str] stays whole
    return f"{option} takes {' or '.join(names)}, not {match['value']!r}"


def _option(name: str) -> str:
    """As it is typed."""
    return f"-{name}" if len(name) == 1 else f"--{name}"
