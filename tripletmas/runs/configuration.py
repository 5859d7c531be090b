"""A run's configuration: parsed from YAML and command line, checked against the catalog, every default filled in.

A configuration file is a list of options that stand before those of the command line, so both are checked by one
parser. Parts are written `--strategy mas --strategy.strength 0.3`, in YAML `strategy: {name: mas, strength: 0.3}` or
`strategy: mas`. The parts of a combined strategy have options of their own: `--strategy.mas.strength 0.3`, in YAML
`strategy: {name: mas+distill, mas: {strength: 0.3}}`.
"""

from __future__ import annotations

import argparse
import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jsonargparse

from tripletmas.basics.foreign_weights import file_sha256
from tripletmas.basics.options import Option, options_of
from tripletmas.basics.sentences import listed, refused, suggestion
from tripletmas.models.making import NORMALISED, defaults_for, made_for
from tripletmas.objectives.kind import Kind
from tripletmas.objectives.kinds import KINDS, kind_named, kind_with
from tripletmas.runs import catalog, plugins, trust
from tripletmas.runs.arguments import (
    DEFAULT_NAMES,
    as_arguments,
    check_numbers,
    check_size,
    check_value,
    part_names,
    with_files_unfolded,
)
from tripletmas.runs.galleries import GalleryConfig
from tripletmas.runs.options import TrainConfig
from tripletmas.runs.plugins import Code
from tripletmas.runs.strength import SearchConfig

_ALONE = ("objective", "seed", "device")
_EMPTY = inspect.Parameter.empty


def parse(
    arguments: Sequence[str],
    *,
    extra: jsonargparse.ArgumentParser | None = None,
    program: str = "tripletmas train",
    may_search: bool = False,
    code: object = None,
):
    """(configuration, other options) of a command line. The code of parts of one's own that it names is executed.

    Args:
        arguments: options of a run, `--config FILE`, and those of `extra`.
        extra: the options that the command has besides.
        may_search: options of a search are no mistake, even where no strength is `auto`.
        code: what a run recorded of the code of its parts, where the arguments are a run's: no other is executed.

    Raises:
        ValueError: for unknown names, options or keys, with the nearest known one, and for values of a wrong type; for
            code that may not be executed (see `plugins`).
    """
    arguments, own = with_files_unfolded(arguments)
    check_size(arguments)
    for argument in arguments:
        check_value(argument)
    names, recorded = _admitted(part_names(arguments), part_names(own), code)
    chosen, kind = _chosen(names)
    parser = _parser(chosen, kind, program, extra)
    _refuse_unknown(arguments, parser, chosen)
    parsed = _parsed(parser, arguments)
    if prepared := _prepared_for(chosen["model"], parsed, parser):
        parser.set_defaults(prepared)  # what is given counts more
        parsed = _parsed(parser, arguments)
    config = {key: parsed.pop(key) for key in (*catalog.PARTS, "training", "gallery", *_ALONE)}
    for part, name in chosen.items():
        config[part] = {"name": name} | config[part] | {"name": name}  # the name comes first
    config["objective"] = names["objective"] or kind.name
    config["model"] = _with_checksum(config["model"])
    search = parsed.pop("search")
    if searched(config["strategy"]) is not None:
        config["search"] = search
    elif not may_search:
        _refuse_search(arguments)
    return _plain(config | ({"code": recorded} if recorded else {})), parsed


def _parsed(parser: jsonargparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    try:
        parsed = parser.parse_args(arguments).as_dict()
    except argparse.ArgumentError as error:
        raise ValueError(refused(error)) from None
    check_numbers(arguments, parsed)
    return parsed


def _prepared_for(name: str, parsed: Mapping[str, Any], parser: jsonargparse.ArgumentParser) -> dict[str, Any]:
    """Option -> its default, of those of data and model that what the model's weights were made for decides."""
    expected = made_for(name, parsed["model"])
    known = {action.dest for action in parser._actions}
    named = {f"{'model' if key in NORMALISED else 'data'}.{key}": value for key, value in expected.items()}
    return {key: value for key, value in named.items() if key in known}


def _with_checksum(model: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a model with the checksum, and the whole path, of the file of weights that it starts from."""
    file = model.get("weights")
    if not isinstance(file, str) or model.get("weights_sha256") or "weights_sha256" not in model:
        return dict(model)
    path = os.path.abspath(os.path.expanduser(file))
    return {**model, "weights": path, "weights_sha256": file_sha256(path)}


def _refuse_search(arguments: Sequence[str]) -> None:
    for each in arguments:
        if each.startswith("--search."):
            raise ValueError(f"{each.partition('=')[0]} is for a strength that is searched: set a strength to auto")


def _chosen(names: Mapping[str, str]) -> tuple[dict[str, str], Kind]:
    """(part -> its name, the kind of task) with the defaults of what is not named."""
    chosen = {part: names[part] or default for part, default in DEFAULT_NAMES.items()}
    chosen["model"] = chosen["model"] or ("mlp" if chosen["data"] == "digits" else "conv4")
    kind = _kind(names["objective"], chosen["data"])
    chosen["loss"] = _loss_for(kind, chosen["loss"])
    return chosen, kind


def searched(strategy: Mapping[str, Any]) -> str | None:
    """Whose strength is to be searched: the part of a combination, "" of a single strategy; None for nobody's.

    Raises:
        ValueError: for more than one.
    """
    own = [""] if strategy.get("strength") == "auto" else []
    parts = [name for name, of in strategy.items() if isinstance(of, Mapping) and of.get("strength") == "auto"]
    if len(own + parts) > 1:
        raise ValueError(f"one strength can be searched, not those of {' and '.join(parts)}: give the others a number")
    return next(iter(own + parts), None)


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """The whole configuration for a nested dict of what differs from the defaults; checked as `parse` does.

    Code is executed as far as the configuration, under `code`, records it, as that of a run does.
    """
    return parse(list(as_arguments(config)), code=config.get("code") or {})[0]


def admit_objective(config: Mapping[str, Any]) -> None:
    """Have the kind of task of a run known, for who reads no more of it; errors as `parse`."""
    _admitted({"objective": str(config.get("objective", ""))}, {"objective": ""}, config.get("code") or {})


def _admitted(
    names: Mapping[str, str], typed: Mapping[str, str], records: object
) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """(part -> name, what is to be recorded of their code), once parts of one's own are in the catalog.

    Args:
        typed: the names that the command line itself gives, not a file.
        records: as `code` of `parse`.
    """
    chosen, recorded = dict(names), {}
    for part, name in names.items():
        for single in name.split("+") if part == "strategy" and catalog.is_combination(name) else [name]:
            found = _code_of(part, single, is_typed=typed[part] == name, records=records)
            if found is not None:
                catalog.admit(found)
                recorded.setdefault(part, {})[found.name] = found.record()
                chosen[part] = found.name if single == name else name
    return chosen, recorded


def _code_of(part: str, name: str, *, is_typed: bool, records: object) -> Code | None:
    """The code of a part of one's own; None for a part that is built in, or that there is not."""
    if catalog.is_built_in(part, name):
        plugins.refuse_registered(part, name)
        return None
    if not plugins.is_written_out(name) and name not in plugins.registered(part):
        return None
    if records is not None:
        return trust.recorded(part, name, records)
    code = plugins.find(part, name)
    return code if is_typed else trust.known(code, "read it, and name it on the command line to execute it")


def _parser(chosen: Mapping[str, str], kind: Kind, program: str, extra) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(
        prog=program,
        exit_on_error=False,
        parents=[extra] if extra else [],
        description="The options of a part depend on its name: shown are those of the named or default parts. "
        "--print_config prints the whole configuration, which --config reads, and stops.",
        epilog=extra.epilog if extra else None,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file with options, or a preset such as no-reindex; options given here count more",
    )
    for part in catalog.PARTS:
        group = parser.add_argument_group(f"{part}: {chosen[part]}")
        group.add_argument(f"--{part}.name", default=chosen[part], metavar="NAME", help=f"also --{part} NAME")
        _add(group, part, catalog.options(part, chosen[part], kind))
    _add(parser.add_argument_group("training"), "training", options_of(TrainConfig, leave_out=("seed",)))
    named = {f"{part}.{key}": value for part, values in kind.defaults.items() for key, value in values.items()}
    named |= {**defaults_for(chosen["model"]), **catalog.defaults_for(chosen["strategy"])}
    _add(parser.add_argument_group("gallery"), "gallery", options_of(GalleryConfig))
    known = {action.dest for action in parser._actions}
    parser.set_defaults({key: value for key, value in named.items() if key in known})
    group = parser.add_argument_group("search: of a strength that is `auto`, for each task on that task's data alone")
    _add(group, "search", options_of(SearchConfig))
    group = parser.add_argument_group("run")
    group.add_argument(
        "--objective",
        type=str,
        default=kind.name,
        help="what is learned: " + "; ".join(f"{each.name}, {each.says}" for each in KINDS.values()),
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of initial weights and batches; the data have order_seed and split_seed",
    )
    group.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...; auto takes a GPU")
    return parser


def _add(group, part: str, options: Mapping[str, Option]) -> None:
    for name, option in options.items():
        required = option.default is _EMPTY
        is_strength = part == "strategy" and name.rpartition(".")[2] == "strength"
        group.add_argument(
            f"--{part}.{name}",
            type=option.type | Literal["auto"] if is_strength else option.type,
            required=required,
            default=None if required else option.default,
            help=option.help,
        )


def _kind(objective: str, data: str) -> Kind:
    """The kind of task that is asked for; some data ask for it themselves."""
    kind = kind_named(objective or kind_with("data", data).name)
    if data in catalog.names("data") and data not in kind.datasets:
        raise ValueError(
            f"data {data!r} do not fit objective {kind.name!r}, which takes {listed(kind.datasets)}; they are for "
            f"objective {kind_with('data', data).name!r}"
        )
    return kind


def _loss_for(kind: Kind, name: str) -> str:
    """The loss of a kind of task; a named one must fit it."""
    if name in catalog.OWN["loss"] and kind.name != catalog.METRIC:
        raise ValueError(
            f"loss {name!r} compares embeddings by their labels: it fits objective {catalog.METRIC!r} only"
        )
    if name in catalog.names("loss") and name not in kind.losses:
        raise ValueError(
            f"loss {name!r} does not fit objective {kind.name!r}, which takes {listed(kind.losses)}; it is for "
            f"objective {kind_with('loss', name).name!r}"
        )
    return name or kind.losses[0]


def _refuse_unknown(arguments: Sequence[str], parser: jsonargparse.ArgumentParser, chosen: Mapping[str, str]) -> None:
    known = {option for action in parser._actions for option in action.option_strings}
    for argument in arguments:
        option = argument.partition("=")[0]
        if not option.startswith("--") or option in known:
            continue
        part, _, key = option.removeprefix("--").partition(".")
        prefix = f"--{part}."
        if part in chosen and key:
            names = [name.removeprefix(prefix) for name in known if name.startswith(prefix)]
            raise ValueError(f"{part} {chosen[part]!r} has no option {key!r}{suggestion(key, sorted(names))}")
        raise ValueError(f"unknown option {option!r}{suggestion(option, sorted(known))}")


def _plain(value: Any) -> Any:
    """Only what YAML holds: dicts, lists, numbers, strings."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value
