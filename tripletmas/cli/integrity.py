"""Whether all files of a run or an index are whole, unchanged and its own; what can be derived is derived anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tripletmas.basics.files import edition_of
from tripletmas.basics.locks import holder, is_held
from tripletmas.basics.sentences import listed
from tripletmas.cli.console import open_run
from tripletmas.cli.importance import prepare
from tripletmas.data.images import missing_images
from tripletmas.index.images import ImageIndex
from tripletmas.objectives.scores import Scores
from tripletmas.runs.directory import RunDirectory, is_run, seed_directories
from tripletmas.runs.experiment import load_trained

Found = tuple[bool | None, str, str]  # fine (True), a problem (False) or worth knowing (None); what; a sentence


def check(path: str | Path) -> Iterator[Found]:
    """Everything worth knowing of the files of a run, of the runs of a folder of seeds, or of an index.

    Raises:
        ValueError: if there is neither.
    """
    path = Path(path)
    if runs := [path] if is_run(path) else seed_directories(path):
        for each in runs:
            yield from _of_run(each)
    elif path.is_file():
        yield from _of_index(path)
    else:
        raise ValueError(f"{path} is neither a run directory nor an index file")


def repair(path: str | Path) -> Iterator[str]:
    """Derive anew what can be derived, where it is damaged or missing, and say what that was.

    The scores of a run from its records; the importance after its last task from its checkpoint; its report.

    Raises:
        ValueError: if that from which it is derived is damaged; if another process writes to the run.
    """
    path = Path(path)
    if not is_run(path) and not seed_directories(path):
        raise ValueError(f"nothing of {path} can be derived anew: restore it from a copy, or build it anew")
    for each in [path] if is_run(path) else seed_directories(path):
        run = open_run(each, trust_code=False)
        with run.locked():
            if _problem(lambda run=run: _check_scores(run)):
                run.keep_scores(_recorded(run).to_json())
                yield f"{each}/scores.json, from metrics.jsonl"
            yield from _mended_importance(run)
        from tripletmas.report.page import write_report  # it draws, and that takes a while to import

        yield str(write_report(each))


def refuse_damaged(path: Path, names: Iterable[str]) -> None:
    """Whether these files of a run are as they were written, but for those that are derived anew when it goes on; and
    whether all are there that its tasks have written.

    Raises:
        ValueError: naming one that is not, with what to do; if another process writes to the run.
    """
    run = RunDirectory(path)
    with run.locked():
        gone = {name for record in run.records("task") for name in record.get("files", ()) if not run.has(name)}
        for name in sorted(gone | {each for each in names if run.has(each)} - {"scores.json"}):
            if problem := _problem(lambda name=name: _read_whole(run, name)):
                raise ValueError(f"{problem}; tripletmas doctor {path} looks at all files of the run")


def _read_whole(run: RunDirectory, name: str) -> None:
    if not run.has(name) or (name.endswith(".safetensors") and not run.is_behind(name)):  # else it is mended
        run.read_tensors(name)
    elif name.endswith(".json"):
        _read(run, name)


def _of_run(path: Path) -> Iterator[Found]:
    run = RunDirectory(path)
    yield _told(f"{path}/config.yaml", lambda: _described(run))
    yield _told(f"{path}/metrics.jsonl", lambda: f"{len(run.records())} records")
    yield _told(f"{path}/checkpoint", lambda: _check_checkpoint(run))
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    for name in (each for each in names if not each.startswith(("checkpoint/", "report/"))):
        yield from _of_file(run, name)
    if not _problem(run.records):
        for name in sorted({each for record in run.records() for each in record.get("files", ())} - {*names}):
            yield False, f"{path}/{name}", "is gone: restore it from a copy, or train anew"
    yield from _lock(path / "lock")


def _of_file(run: RunDirectory, name: str) -> Iterator[Found]:
    what = f"{run.path}/{name}"
    if name.endswith(".safetensors"):
        yield _told(what, lambda: f"{len(run.read_tensors(name))} tensors")
    elif name.endswith(".json"):
        yield _told(what, lambda: _check_scores(run) if name == "scores.json" else _read(run, name))
    elif name.endswith((".part", ".part.mode")):
        yield None, what, "was left by a process that was killed, and is removed when it is written"


def _described(run: RunDirectory) -> str | None:
    run.config()
    return f"run {run.identity}" if run.identity else None


def _check_checkpoint(run: RunDirectory) -> str:
    state = run.load_checkpoint()
    run.check_records(state)
    return f"it was written {state.place}" if state else "there is none"


def _read(run: RunDirectory, name: str) -> str:
    readers = {"compatibility.json": run.compatibility, "forecast.json": run.forecasts, "index/final.json": run.classes}
    found = readers.get(name, lambda: run.read_json(name))()
    return f"{len(found)} entries"


def _check_scores(run: RunDirectory) -> str:
    """Raises ValueError if scores.json is damaged, or says something else than the records."""
    content = run.scores()
    if content is None:
        raise ValueError("it is missing")
    if content["matrices"] and Scores.from_json(content).to_json() != _recorded(run).to_json():
        raise ValueError("it says something else than metrics.jsonl")
    return f"{len(content['task_names'])} tasks"


def _recorded(run: RunDirectory) -> Scores:
    """The scores that the records tell."""
    records = [record for record in run.records() if record.get("kind") in ("task", "ahead")]
    last = {record.get("task", 0): str(record.get("name", "")) for record in records if record["kind"] == "task"}
    scores = Scores(tuple(last[number] for number in sorted(last)))
    for record in records:
        scores.take(record)
    return scores


def _mended_importance(run: RunDirectory) -> Iterator[str]:
    """Write the importance after the last task anew, if it is damaged or behind."""
    state = run.load_checkpoint()
    if state is None or state.epoch or not state.task:
        return
    last = state.task - 1
    numbers = range(2 + len(list((run.path / "importance").glob(f"task{last:02d}-*.safetensors"))))
    damaged = [each for each in numbers if _problem(lambda each=each: run.importance(each).find(last))]
    if damaged:
        run.check_records(state)
        experiment, _ = load_trained(run)
        prepare(experiment, run, state)
        for position in damaged:
            run.importance(position).write(last, experiment.strategy.protections[position].importance)
            yield f"{run.importance(position).path(last)}, from the checkpoint"


def _of_index(path: Path) -> Iterator[Found]:
    index: list[ImageIndex] = []
    yield _told(str(path), lambda: index.append(ImageIndex.open(path)) or f"{len(index[0])} vectors")
    if index:
        if edition_of(path) is None:
            yield (
                None,
                f"{path}: header",
                "of a version without checksums of headers: a changed one is not seen",
            )
        missing = [] if index[0].texts else missing_images(index[0].paths)
        first = listed([index[0].paths[row] for row in missing], most=3)
        if missing:
            yield None, f"{path}: images", f"{len(missing)} of {len(index[0])} are not where they were: {first}"
    yield from _lock(path.with_name(f"{path.name}.lock"))


def _lock(path: Path) -> Iterator[Found]:
    if found := holder(path):
        who = f"process {found.get('process')} on {found.get('machine')}, since {found.get('since')}"
        held = f"is held by {who}" if is_held(path) else f"was left by {who}, which was killed; it holds nobody up"
        yield None, str(path), held


def _problem(read: Callable[[], object]) -> str | None:
    """Why something cannot be read; None where it can."""
    try:
        read()
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _told(what: str, read: Callable[[], str | None]) -> Found:
    """What is found when something is read; None is of an earlier version."""
    told: list[str | None] = []
    if problem := _problem(lambda: told.append(read())):
        return False, what, problem.removeprefix(f"{what} ")
    if told[0] is None:
        return None, what, "of a version without checksums: that a JSON file or a record was changed cannot be seen"
    return True, what, told[0]
