"""The options of a run as one list: those of configuration files first, in which later ones count more."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tripletmas.basics.yaml_files import MOST, read_mapping, read_otherwise, unfolds
from tripletmas.models.exported import WEIGHTS, options_of_exported
from tripletmas.models.making import is_built_in
from tripletmas.runs import plugins

PARTS = ("data", "model", "loss", "strategy")
DEFAULT_NAMES = {"data": "digits", "model": "", "loss": "", "strategy": "mas"}


def with_files_unfolded(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(all options, those that are no file's): `--config FILE` replaced by the options in the file, which come first.

    A part to which the command line gives another name starts from that name's defaults, not from the file's options.
    """
    rest, files = [], []
    waiting = iter(_with_root(arguments))
    for argument in waiting:
        option, equals, value = argument.partition("=")
        if option == "--config":
            files.append(value if equals else next(waiting, ""))
        else:
            rest.append(_named(argument))
    exported, rest = _model_unfolded(rest)
    here = part_names(rest)
    return [argument for file in files for argument in _content(file, here)] + exported + rest, rest


def _model_unfolded(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(the options of the exported model whose folder is named as the model, the arguments without that)."""
    folder = part_names(arguments)["model"]
    if not folder or not os.path.isdir(os.path.expanduser(folder)):
        return [], arguments
    options = options_of_exported(os.path.expanduser(folder))
    name = str(options["name"])
    if not is_built_in(name):
        raise ValueError(f"{folder} needs the code {name!r}: name that as the model, and {WEIGHTS} by --model.weights")
    place = next(place for place, each in enumerate(arguments) if each.partition("=")[0] == "--model.name")
    end = place + (1 if "=" in arguments[place] else 2)
    return list(as_arguments({"model": options})), arguments[:place] + arguments[end:]


def _content(file: str, here: Mapping[str, str]) -> list[str]:
    """The options in a configuration file, without those of parts to which the command line gives another name."""
    content = [_named(argument) for argument in _with_root(list(as_arguments(read_yaml(file))))]
    there, renamed = part_names(content), []
    for part, default in DEFAULT_NAMES.items():
        before, now = plugins.canonical(there[part] or default), plugins.canonical(here[part])
        if now and before not in ("", now):
            renamed.append(f"--{part}.")
    return [argument for argument in content if not argument.startswith(tuple(renamed))]


def presets() -> dict[str, Path]:
    """The configurations that come with the package, by name: `--config NAME`."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "presets").glob("*.yaml"))}


def shipped() -> dict[str, Path]:
    """The configurations `datasets/NAME/FILE.yaml`: in a wheel they lie in the package, in a checkout beside it."""
    package = Path(__file__).parents[1]
    root = package if (package / "datasets").is_dir() else package.parent
    files = sorted((root / "datasets").glob("*/*.yaml"))
    return {path.relative_to(root).as_posix(): path for path in files}


def read_yaml(file: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; a name of `presets` or of `shipped` reads that, where no file has this name.

    Raises:
        ValueError: if it cannot be read; as `read_mapping`.
    """
    named = presets() | shipped()
    path = Path(file) if Path(file).is_file() else named.get(str(file), Path(file))
    try:
        return read_mapping(path)
    except OSError as error:
        names = ", ".join(named)
        raise ValueError(
            f"the configuration {str(file)!r} cannot be read: {error.strerror} (there are {names})"
        ) from None
    except ValueError as error:
        raise ValueError(f"the configuration {str(file)!r} {error}") from None


def as_arguments(config: Mapping[str, Any], prefix: str = "--") -> Iterator[str]:
    for key, value in config.items():
        if key in ("version", "code") and prefix == "--":
            continue
        if isinstance(value, Mapping):
            yield from as_arguments(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={value if isinstance(value, str) else json.dumps(value)}"


def _with_root(arguments: Sequence[str]) -> Iterator[str]:
    """`--data hf:FOLDER` as `--data hf --data.root FOLDER`."""
    names = ("--data", "--data.name")
    before = ""
    for argument in arguments:
        option, equals, value = argument.partition("=") if before not in names else (before, "", argument)
        is_folder = option in names and value.startswith("hf:")
        yield f"{option}{equals}hf" if is_folder and equals else "hf" if is_folder else argument
        if is_folder:
            yield f"--data.root={value.removeprefix('hf:')}"
        before = argument


def _named(argument: str) -> str:
    """`--strategy` as `--strategy.name`."""
    option, equals, value = argument.partition("=")
    return f"{option}.name{equals}{value}" if option in {f"--{part}" for part in PARTS} else argument


class _First(argparse.ArgumentParser):
    """Reads what the options of the rest depend on."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def part_names(arguments: Sequence[str]) -> dict[str, str]:
    """The names that are asked for of parts and objective, "" for none; the rest of the command line is not read."""
    first = _First(add_help=False, allow_abbrev=False)
    first.add_argument("--objective", default="")
    for part in PARTS:
        first.add_argument(f"--{part}.name", dest=part, default="")
    return vars(first.parse_known_args(list(arguments))[0])


def check_size(arguments: Sequence[str]) -> None:
    """Whether a size is meant as it will be read: YAML takes 0x5 for a number, 5."""
    for option, value in _with_values(arguments):
        if option.endswith(".size") and re.match("0x", value, re.IGNORECASE):
            raise ValueError(f"{option} takes sides of 1 pixel and more, as 224 or HEIGHTxWIDTH, got {value!r}")


def check_numbers(arguments: Sequence[str], parsed: Mapping[str, Any]) -> None:
    """Whether numbers were parsed as they are meant: YAML takes 010 for 8, and 1:30 for 90."""
    for option, value in _with_values(arguments):
        found: Any = parsed
        for key in option.removeprefix("--").split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, (int, float, list, tuple)) and (read := read_otherwise(value)):
            raise ValueError(f"{option} has {read}: write the number that is meant")


def _with_values(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(option, value) of `--option=value`, and of `--option value`."""
    for argument, following in zip(arguments, (*arguments, "")[1:], strict=True):
        option, equals, value = argument.partition("=")
        yield option, value if equals else following


def check_value(argument: str) -> None:
    """Whether an option can be kept in a file, and is read in no time."""
    if re.search("[\ud800-\udfff]", argument):  # what Python makes of other bytes in a name
        raise ValueError(f"{argument!r} is not UTF-8, as all that a run keeps: give the folder or file another name")
    if unfolds(argument.partition("=")[2] or argument):
        raise ValueError(f"the value of {argument:.40} unfolds to more than {MOST:,}: write it without aliases")
