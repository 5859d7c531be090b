"""The command completion: what a shell needs to complete words of our commands, drawn from their own help.

A word that begins with a hyphen is an option of the command; behind an option that takes a name stand the names; what
neither is, nor one of a command's own words, is a file, which the shell itself completes.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args, get_origin

from tripletmas.cli.console import make_parser
from tripletmas.cli.main import COMMANDS, main
from tripletmas.cli.telling import OPTIONS
from tripletmas.objectives.kinds import KINDS
from tripletmas.runs import catalog
from tripletmas.runs.arguments import presets

_LISTS = ("strategies", "losses", "models", "data", "objectives")
_HELP_LINE = r"^ +(?:-\w(?: \S+)?, )?(--[a-z][\w.-]*)(?: (\S+))?(?=  |$)"  # an option, and what stands for its value

# COMP_WORDS of bash has --option=value in three parts, that of zsh in one
_BASH = """\
_tripletmas() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" option="${{COMP_WORDS[COMP_CWORD-1]}}"
    local key="${{COMP_WORDS[1]}}" words="" before=""
    case "$cur" in
        =) cur="" ;;
        --*=*) option="${{cur%%=*}}"; before="$option="; cur="${{cur#*=}}" ;;
        *) if [ "$option" = "=" ]; then option="${{COMP_WORDS[COMP_CWORD-2]}}"; fi ;;
    esac
    if [ "$key" = index ] && [ "$COMP_CWORD" -gt 2 ]; then key="index ${{COMP_WORDS[2]}}"; fi
    if [ "$COMP_CWORD" -eq 1 ]; then key="" option=""; fi
    case "$option" in
{values}
    esac
    if [ -z "$words" ]; then
        case "$key,$cur" in
{options}
        esac
    fi
    if [ -z "$words" ]; then
        case "$key,$option" in
{takes}
{words}
        esac
    fi
    COMPREPLY=($(compgen -P "$before" -W "$words" -- "$cur"))
}}
complete -o default -F _tripletmas tripletmas
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"
_FISH = """\
function __tripletmas_at
    set -l given (commandline -opc)
    set -l key $given[2]
    test "$key" = index; and test (count $given) -gt 2; and set key "index $given[3]"
    test "$key" = "$argv"
end"""


@dataclass(frozen=True)
class _Command:
    """What may stand behind a command.

    Attributes:
        options: option -> what its help has in place of a value; "" where it takes none.
        words: what else, where it is no file.
    """

    options: Mapping[str, str]
    words: Sequence[str] = ()


def completion(arguments: Sequence[str]) -> None:
    """Print what completes commands, options and names of parts in a shell: write it where the shell looks for it."""
    parser = make_parser("completion", completion.__doc__)
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="bash, zsh or fish")
    shell = parser.parse_args(arguments).shell
    if shell == "fish":
        print("\n".join([_FISH, *_fish(_commands())]))
    else:
        print((_ZSH if shell == "zsh" else "") + _bash(_commands()), end="")


def _commands() -> dict[str, _Command]:
    """Of each command, with its action for index; "" for tripletmas itself."""
    actions = re.findall(r"^usage: tripletmas index (\S+)", _help("index"))[0].split("|")
    words = {"index": actions, "list": _LISTS, "example": ("shop",), "completion": ("bash", "zsh", "fish")}
    found = {"": _Command({"--help": "", "--version": ""}, tuple(COMMANDS))}
    found |= {name: _Command(_options(name), words.get(name, ())) for name in COMMANDS}
    for name in ("train", "search"):  # their help has the options of the parts that are named, or of the default ones
        found[name] = _Command({**_of_parts(), **found[name].options})
    return found | {f"index {action}": _Command(_options("index", action)) for action in actions}


def _options(*command: str) -> dict[str, str]:
    """The options that a command's help names."""
    found = dict(re.findall(_HELP_LINE, _help(*command), flags=re.M))
    return {**dict.fromkeys([*OPTIONS, "--help"], ""), **found}


def _of_parts() -> dict[str, str]:
    """The options of every part that can be named, as help would have them."""
    found = {f"--{part}": "NAME" for part in catalog.PARTS}
    for part in catalog.PARTS:
        names = ("mlp", "conv4", "resnet18") if part == "model" else catalog.names(part)
        for name in names:
            for key, option in catalog.options(part, name).items():
                literal = [str(each) for each in get_args(option.type) if get_origin(option.type) is Literal]
                found[f"--{part}.{key}"] = f"{{{','.join(literal)}}}" if literal else key.upper()
    return found


def _help(*command: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return said.getvalue()


def _values(commands: Iterable[_Command]) -> dict[str, list[str]]:
    """Option -> the names that it takes."""
    listed = {
        option: value.strip("{}").split(",")
        for command in commands
        for option, value in command.options.items()
        if value.startswith("{")
    }
    named = {f"--{part}": list(catalog.names(part)) for part in catalog.PARTS}
    named |= {f"{option}.name": names for option, names in named.items()}
    own = {"--objective": list(KINDS), "--device": ["auto", "cpu", "cuda"], "--config": list(presets())}
    return {**listed, **named, **own, "--logger": ["tensorboard", "wandb", "mlflow", "none"]}


def _bash(commands: Mapping[str, _Command]) -> str:
    def cases(indent: int, table: Iterable[tuple[str, Iterable[str]]]) -> str:
        return "\n".join(f'{" " * indent}{pattern}) words="{" ".join(words)}" ;;' for pattern, words in table)

    values = _values(commands.values())
    taking = [
        f'"{key},{option}"'
        for key, command in commands.items()
        for option, value in command.options.items()
        if value and option not in values
    ]
    return _BASH.format(
        values=cases(8, ((f'"{option}"', names) for option, names in values.items())),
        options=cases(12, ((f'"{key}",-*', command.options) for key, command in commands.items())),
        takes=f"{' ' * 12}{'|'.join(taking)}) ;;",
        words=cases(12, ((f'"{key}",*', command.words) for key, command in commands.items() if command.words)),
    )


def _fish(commands: Mapping[str, _Command]) -> list[str]:
    values, lines = _values(commands.values()), []
    for key, command in commands.items():
        here = f"complete -c tripletmas -n '__tripletmas_at {key}'"
        if command.words:
            lines.append(f"{here} -f -a '{' '.join(command.words)}'")
        for option, value in command.options.items():
            names = f" -x -a '{' '.join(values[option])}'" if option in values else " -r" if value else ""
            lines.append(f"{here} -l {option.removeprefix('--')}{names}")
    return lines
