"""Commands that train: train, search, resume."""

from __future__ import annotations

import ctypes
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from tripletmas.basics import distributed
from tripletmas.basics.sentences import short
from tripletmas.cli.console import console, make_parser, numbers, open_run, print_comparison
from tripletmas.cli.live_page import LivePage
from tripletmas.cli.outputs import check_place
from tripletmas.cli.telling import ALSO, is_quiet
from tripletmas.runs import configuration, log, loop, sweeps, trust
from tripletmas.runs.directory import RunDirectory, is_run, seed_directories
from tripletmas.runs.experiment import config_of, run_experiment

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of <malloc.h>
_GIBIBYTE = 2**30
_SECONDS_BETWEEN = 10  # lines about epochs in a log


def train(arguments: Sequence[str]) -> dict[str, Any]:
    """Learn a stream of tasks; one run, or one for each seed."""
    extra = jsonargparse.ArgumentParser(add_help=False, epilog=ALSO)
    extra.add_argument("--out", type=str, default=None, help="the run directory to write (default: runs/STRATEGY)")
    extra.add_argument("--seeds", type=str, default=None, help="such as 0,1,2: one run for each, in OUT/seed0, ...")
    extra.add_argument("--report", type=bool, default=True, help="write a report at the end")
    extra.add_argument(
        "--logger",
        type=str,
        default=None,
        help="who else is told of epochs and tasks: tensorboard (in OUT/log), wandb, mlflow, none (default: as begun)",
    )
    extra.add_argument(
        "--sweep",
        action="append",
        metavar="OPTION=VALUES",
        help="such as strategy.strength=0.1,0.3,1: a run for each value, in OUT/strength=0.1, ...; several combine",
    )
    extra.add_argument(
        "--trials", type=int, default=None, help="let optuna choose so many values in a sweep over strength=0.01..10"
    )
    asked = "--print_config" in arguments  # taken out first: jsonargparse has a special meaning for this name
    arguments = [each for each in arguments if each != "--print_config"]
    config, own = configuration.parse(arguments, extra=extra)
    if asked:
        print(yaml.safe_dump(config, sort_keys=False), end="")
        return config
    if own["logger"] is not None:
        log.check_logger(own["logger"])
    out = _out(own["out"] or f"runs/{short(config['strategy']['name'])}", config)
    seeds = _seeds(own["seeds"], arguments)

    def with_values(values: sweeps.Chosen) -> dict[str, Any]:
        given = [*arguments, *(f"--{option}={value}" for option, value in values.items())]
        return configuration.parse(given, extra=extra)[0]

    def run(config: dict[str, Any], folder: Path) -> dict[str, Any]:
        return _run_seeds(config, folder, seeds, own["logger"], write_report=own["report"], is_single=not own["sweep"])

    if own["trials"] is not None:
        if distributed.is_on():
            raise ValueError("--trials chooses values one after the other in one process: start it without torchrun")
        return _guided(own["sweep"] or [], own["trials"], out, with_values, run)
    return _sweep(own["sweep"], out, with_values, run) if own["sweep"] else run(config, out)


def search(arguments: Sequence[str]) -> dict[str, Any]:
    """Learn a stream with a strength that is searched for each task on that task's data alone; show the search."""
    extra = jsonargparse.ArgumentParser(add_help=False, epilog=ALSO)
    extra.add_argument("--out", type=str, default=None, help="the run directory to write (default: runs/search)")
    config, own = configuration.parse(arguments, extra=extra, program="tripletmas search", may_search=True)
    if configuration.searched(config["strategy"]) is None:
        name = config["strategy"]["name"]
        if "+" in name:
            raise ValueError(f"say whose strength is searched: such as --strategy.{name.split('+')[0]}.strength auto")
        if "strength" not in config["strategy"]:
            raise ValueError(f"strategy {name!r} has no strength to search")
        if _names(arguments, "--strategy.strength"):
            raise ValueError("a search chooses the strength itself: --search.start is the first that it tries")
        config, own = configuration.parse([*arguments, "--strategy.strength=auto"], extra=extra)
    out = _out(own["out"] or "runs/search", config)
    _trust(config)
    content = _run(config, out)
    if not distributed.is_main():
        return content
    from tripletmas.report.read import read_run  # a report draws, and that takes a while to import
    from tripletmas.report.search import search_table

    searches = read_run(out).searches
    console().print(search_table(searches))
    return {**content, "searches": searches}


def resume(arguments: Sequence[str]) -> dict[str, Any]:
    """Go on with a run, or with all runs of a folder of seeds."""
    options = make_parser("resume", resume.__doc__, "run", "--trust-code").parse_args(arguments)
    path = Path(options.run)
    found = []
    for each in seed_directories(path) or [path]:
        run = open_run(each, trust_code=options.trust_code)
        config_of(run)  # or it is told what it lacks
        found.append(_run({key: value for key, value in run.config().items() if key != "version"}, each))
    return found[0] if len(found) == 1 else {"seeds": found}


def _out(path: str, config: dict[str, Any]) -> Path:
    """Where a run is written: not among the images that it reads."""
    read = [*config["data"].values(), config["gallery"]["images"]]
    check_place("--out", path, images=[each for each in read if isinstance(each, str) and each and Path(each).is_dir()])
    return Path(path)


def _trust(config: dict[str, Any]) -> None:
    """From now on execute the code that a configuration names."""
    if distributed.is_main():
        trust.accept(config.get("code"))
    distributed.barrier()


def _seeds(text: str | None, arguments: Sequence[str]) -> list[int] | None:
    if text is not None and _names(arguments, "--seed"):
        raise ValueError("give --seed or --seeds, not both")
    return None if text is None else numbers(text, "--seeds")


def _names(arguments: Sequence[str], option: str) -> bool:
    return any(each.partition("=")[0] == option for each in arguments)


def _run(
    config: dict[str, Any],
    out: Path,
    logger: str | None = None,
    *,
    write_report: bool = True,
    go_on: str | None = None,
) -> dict[str, Any]:
    """Train, print the scores, write the report; Ctrl-C says how to go on. Gives the scores, and the report's place."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Seldom())
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    for name in ("faiss", "tensorboard"):  # which build is loaded, where a log's files end: no news
        logging.getLogger(name).setLevel(logging.WARNING)
    keep_freed_memory()
    with distributed.together("reading the run's files"):
        _refuse_damaged(out)
    with _kept_warnings() as warned:
        _train(config, out, logger, go_on, LivePage(out) if write_report else None)
        if not distributed.is_main():
            return {}
        content = print_comparison([out])
        if write_report:
            content["report"] = str(_report(out))
            print(f"report: {content['report']}")
    if not is_quiet():  # else nothing has been printed since
        for message in warned:
            print(f"warned of before: {message}", file=sys.stderr)
    return content


def _refuse_damaged(out: Path) -> None:
    """Of a run that is gone on with: whether its files are those that it wrote, as far as they are not known to be."""
    if is_run(out) and distributed.is_main():
        from tripletmas.cli.integrity import refuse_damaged  # it imports what a run that begins has no need of
        from tripletmas.report.kept import changed_files

        refuse_damaged(out, changed_files(out))


def _report(out: Path) -> Path:
    """The page of a run; of one that had ended before, with which nothing has happened since, as it is."""
    from tripletmas.report.kept import kept_page

    if kept := kept_page(out):
        return kept
    from tripletmas.report import page  # it draws, and that takes a while to import

    return page.write_report(out)


def _train(config: dict[str, Any], out: Path, logger: str | None, go_on: str | None, live: LivePage | None) -> None:
    try:
        run_experiment(config, out, logger=logger, listener=live)
    except KeyboardInterrupt:
        if not is_run(out):
            raise  # it came while the data were read: there is no run to go on with
        go_on = go_on or f"tripletmas resume {out}"
        raise KeyboardInterrupt(f"saved up to the last whole epoch; go on with: {go_on}") from None


def _run_seeds(
    config: dict[str, Any],
    out: Path,
    seeds: Sequence[int] | None,
    logger: str | None,
    *,
    write_report: bool,
    is_single: bool,
) -> dict[str, Any]:
    """One run, or one for each seed; the code that its configuration names is trusted from now on."""
    _trust(config)
    again = "the same command, which goes on where it stopped"
    if seeds is None:
        return _run(config, out, logger, write_report=write_report, go_on=None if is_single else again)
    if is_run(out):
        raise ValueError(f"{out} holds a single run: choose another --out for several seeds")
    for seed in seeds:
        _run({**config, "seed": seed}, out / f"seed{seed}", logger, write_report=write_report, go_on=again)
    return print_comparison([out]) if distributed.is_main() else {}


@contextmanager
def _kept_warnings() -> Iterator[list[str]]:
    """What is warned of inside, each once, to be told again at the end: much has been printed since."""
    kept: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() not in kept:
                kept.append(record.getMessage())

    keeper, logger = Keeper(logging.WARNING), logging.getLogger("tripletmas")
    logger.addHandler(keeper)
    try:
        yield kept
    finally:
        logger.removeHandler(keeper)


class _Seldom(logging.Filter):
    """Lets what is told of each epoch through once in a while, and only where no bar can show it, as in a file."""

    def __init__(self) -> None:
        super().__init__()
        self._told = time.monotonic()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name != loop.__name__ or record.levelno > logging.INFO:
            return True
        if sys.stderr.isatty() or time.monotonic() - self._told < _SECONDS_BETWEEN:
            return False
        self._told = time.monotonic()
        return True


_Configured = Callable[[sweeps.Chosen], dict[str, Any]]  # the configuration with these values
_Runner = Callable[[dict[str, Any], Path], dict[str, Any]]


def _sweep(texts: Sequence[str], out: Path, configured: _Configured, run: _Runner) -> dict[str, Any]:
    """A run for every combination of values; all are checked before the first begins."""
    runs = {out / sweeps.folder_of(values): configured(values) for values in sweeps.combinations(texts)}
    _say_what_chooses(next(iter(runs.values())))
    failed = {}
    for folder, config in runs.items():
        try:
            run(config, folder)
        except FloatingPointError as error:  # a value that is too large must not keep the others from their turn
            failed[folder] = str(error)
    whole = [folder for folder in runs if folder not in failed]
    content = print_comparison(whole) if whole and distributed.is_main() else {}
    for folder, message in failed.items():
        print(f"{folder} failed: {message}", file=sys.stderr)
    return {**content, "failed": {str(folder): message for folder, message in failed.items()}}


def _guided(texts: Sequence[str], trials: int, out: Path, configured: _Configured, run: _Runner) -> dict[str, Any]:
    """Runs with the values that optuna chooses."""
    from tripletmas.report.compare import comparison  # a report draws, and that takes a while to import

    lowest = {option: f"{low:g}" for option, (low, _) in sweeps.ranges(texts).items()}
    _say_what_chooses(configured(lowest))

    def score(values: sweeps.Chosen, number: int) -> float:
        folder = out / f"trial{number:03d}"
        try:
            run(configured(values), folder)
        except FloatingPointError as error:
            print(f"{folder} failed: {error}", file=sys.stderr)
            return -1.0  # below every score
        return comparison([folder]).methods[0].average.mean

    best, value = sweeps.guided(texts, trials, score)
    folders = [out / f"trial{number:03d}" for number in range(trials)]
    content = print_comparison([folder for folder in folders if RunDirectory(folder).num_done])
    print(f"best of {trials}: {', '.join(f'{name}={chosen}' for name, chosen in best.items())} ({value:.3f})")
    return {**content, "best": {"options": best, "score": value}}


def _say_what_chooses(config: dict[str, Any]) -> None:
    if not config["data"].get("validation"):
        print(
            "the scores of this sweep are on the queries themselves: to choose an option by them, and measure with it "
            "afterwards, sweep with --data.validation true",
            file=sys.stderr,
        )


def keep_freed_memory() -> bool:
    """Have the allocator of this process keep what is freed, up to about a gibibyte; whether it can.

    Activations of a training step are large blocks; those above 32 MiB glibc takes from the system and gives back each
    time, and every page is then cleared and mapped again. Keeping them made a step of conv4 with 64 images of 64x64
    about twice as fast on one core. Other allocators, and systems other than Linux, are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    settings = ((_MMAP_THRESHOLD, _GIBIBYTE), (_TRIM_THRESHOLD, _GIBIBYTE), (_TOP_PAD, _GIBIBYTE // 16))
    taken = [mallopt is not None and mallopt(name, value) == 1 for name, value in settings]
    return all(taken)
