"""The command completion: what a shell needs to complete words of our commands, drawn from their own help."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence

from tripletmas.cli.console import make_parser
from tripletmas.cli.main import COMMANDS, main
from tripletmas.cli.telling import OPTIONS
from tripletmas.objectives.kinds import KINDS
from tripletmas.runs import catalog

_LISTS = ("strategies", "losses", "models", "data", "objectives")

_BASH = """\
_tripletmas() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}" key="${{COMP_WORDS[1]}}" words=""
    if [ "$key" = index ] && [ "$COMP_CWORD" -gt 2 ]; then key="index ${{COMP_WORDS[2]}}"; fi
    if [ "$COMP_CWORD" -eq 1 ]; then key=""; fi
    case "$prev" in
{values}
    esac
    if [ -z "$words" ]; then
        case "$key" in
{words}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o default -F _tripletmas tripletmas
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def completion(arguments: Sequence[str]) -> None:
    """Print what completes commands, options and names of parts in a shell: write it where the shell looks for it."""
    parser = make_parser("completion", completion.__doc__)
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="bash, zsh or fish")
    shell = parser.parse_args(arguments).shell
    if shell == "fish":
        print("\n".join(_fish()))
    else:
        print((_ZSH if shell == "zsh" else "") + _bash(), end="")


def _words() -> dict[str, list[str]]:
    """What may stand behind `tripletmas`, by the command, with its action for index; "" for the command itself."""
    found = {"": [*COMMANDS, "--help", "--version"]}
    for name in COMMANDS:
        found[name] = _options(name)
    actions = re.findall(r"^usage: tripletmas index (\S+)", _help("index"))[0].split("|")
    found["index"] += actions
    found |= {f"index {action}": _options("index", action) for action in actions}
    found["list"] += _LISTS
    found["example"] += ["shop"]
    found["completion"] += ["bash", "zsh", "fish"]
    return found


def _options(*command: str) -> list[str]:
    """The options that a command's help names."""
    options = re.findall(r"^ +(?:-\w, )?(--[a-z][\w.-]*)", _help(*command), flags=re.M)
    return list(dict.fromkeys([*options, *OPTIONS, "--help"]))


def _help(*command: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return said.getvalue()


def _values() -> dict[str, list[str]]:
    """Option -> the names that it takes."""
    named = {f"--{part}": list(catalog.names(part)) for part in ("strategy", "loss", "model", "data")}
    return named | {"--objective": list(KINDS), "--device": ["auto", "cpu", "cuda"]}


def _bash() -> str:
    def cases(table: dict[str, list[str]], indent: str) -> str:
        return "\n".join(f'{indent}"{key}") words="{" ".join(words)}" ;;' for key, words in table.items())

    return _BASH.format(values=cases(_values(), " " * 8), words=cases(_words(), " " * 12))


def _fish() -> list[str]:
    def line(condition: str, words: Sequence[str]) -> str:
        return f"complete -c tripletmas -n '{condition}' -a '{' '.join(words)}'"

    lines = []
    for key, words in _words().items():
        command, _, action = key.partition(" ")
        condition = f"__fish_seen_subcommand_from {command}" if command else "__fish_use_subcommand"
        lines.append(line(f"{condition}; and __fish_seen_subcommand_from {action}" if action else condition, words))
    for option, names in _values().items():
        lines.append(f"complete -c tripletmas -l {option.removeprefix('--')} -x -a '{' '.join(names)}'")
    return lines
