"""How many small faults the tests would notice: mutants of modules, each judged by the tests that run its lines.

    python scripts/mutation_score.py FOLDER --sample 1000

First the tests run once, and which lines each runs is written down. Then mutants (see `mutants.py`) are drawn at
random; each is put into a copy of the checkout, and the tests that run its lines are called, those of its own folder
first, then the quickest ones, until one fails. What takes long to import is imported once: each mutant is a fork. A
mutant that none runs has survived; one on which the tests take many times as long as they do has been noticed.

FOLDER holds the copy, the lines, and one result a line in results.jsonl: the same command again goes on, and tries
those that survived with the tests that were added since. Numbers in FOLDER/equivalent.txt, one a line with a reason,
are of mutants that no test can notice. `--slow` judges what survived by the slow tests.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

from mutants import Mutant, mutants_of

CHECKOUT = Path(__file__).resolve().parents[1]
MODULES = (
    *("tripletmas/index/*.py", "tripletmas/protection/*.py", "tripletmas/protection/importance/*.py"),
    *("tripletmas/protection/structured/*.py", "tripletmas/data/splits.py", "tripletmas/data/tasks.py"),
    *("tripletmas/objectives/metrics.py", "tripletmas/objectives/scores.py"),
)
TESTS = ("tests/index", "tests/protection", "tests/objectives", "tests/data", "tests/strategies")
MARKERS = {False: "not slow and not long", True: "slow"}
TIMES = 10  # as many times as long as the tests take: they hang
LEAST = 60.0  # seconds of CPU before that is asked
MEMORY = 8 * 2**30  # bytes that a mutant may take


class Drawn(NamedTuple):
    """A mutant of a sample, by its number."""

    number: int
    file: str
    mutant: Mutant


class Cover:
    """Which tests run which lines, and how long each takes."""

    def __init__(self, *parts: dict[str, Any]):
        self.seconds: dict[str, float] = {}
        self.foreign: set[str] = set()
        self._lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for part in parts:
            names = list(part["tests"])
            self.seconds |= part["tests"]
            self.foreign |= set(part["foreign"])
            for file, lines in part["lines"].items():
                for line, numbers in lines.items():
                    self._lines[file][int(line)] |= {names[each] for each in numbers}

    def tests(self, drawn: Drawn) -> list[str]:
        """Those that run a line of the mutant, those beside its module first, then by time."""
        lines, (first, last) = self._lines[drawn.file], drawn.mutant.lines
        wanted = range(first, last + 1) if first else list(lines)
        found = {test for line in wanted if line in lines for test in lines[line]}
        own = f"tests/{Path(drawn.file).parent.relative_to('tripletmas')}/"
        return sorted(found, key=lambda test: (not test.startswith(own), self.seconds[test]))


def main() -> None:
    options = asked()
    place, tree = options.folder.resolve(), options.folder.resolve() / "tree"
    copied(tree)
    prepare(tree)
    covers = [covered(place, tree, options.tests, slow=slow) for slow in ((False, True) if options.slow else (False,))]
    cover = Cover(*covers)
    sample = drawn_from(tree, options.modules, options.sample, options.seed)
    done = results(place)
    imported(cover.foreign)
    end = time.monotonic() + 60 * options.minutes
    for drawn in sample:
        before = done.get(drawn.number)
        tests = cover.tests(drawn)
        if before is not None:
            tests = [] if before["outcome"] != "survived" else [each for each in tests if each not in before["tests"]]
        tests = list(within(tests, cover, options.seconds))
        if time.monotonic() > end or (before is not None and not tests):
            continue
        found = judged(place, tree, drawn, tests, cover)
        if before is not None:
            found["tests"] = [*before["tests"], *found["tests"]]
        with (place / "results.jsonl").open("a") as file:
            print(json.dumps(found), file=file)
    told(place, sample)


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sample", type=int, default=1000, help="how many mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", nargs="+", default=MODULES, help="patterns of files")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="files and folders of tests")
    parser.add_argument("--seconds", type=float, default=30, help="of tests for a mutant, as they take unchanged")
    parser.add_argument("--minutes", type=float, default=1e9, help="after which none is begun")
    parser.add_argument("--slow", action="store_true", help="by the slow tests, too")
    return parser.parse_args()


# --- the copy


def copied(tree: Path) -> None:
    """What git knows of the checkout, and what it does not ignore; tests that changed since are copied again."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout.splitlines()
    for name in names:
        there, here = tree / name, CHECKOUT / name
        if here.is_file() and (not there.exists() or (name.startswith("tests/") and differ(here, there))):
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(here, there)


def differ(one: Path, other: Path) -> bool:
    return one.read_bytes() != other.read_bytes()


def prepare(tree: Path) -> None:
    """Here, and in what is called from here, the copy is what is imported; nothing is compiled to disk from now on."""
    data = CHECKOUT.parent / "shared" / "data"
    if data.is_dir():
        os.environ.setdefault("TRIPLETMAS_REAL_DATA", str(data))
    os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    sys.path[:] = [str(tree), *(each for each in sys.path if Path(each or ".").resolve() != CHECKOUT)]
    sys.dont_write_bytecode = True
    os.chdir(tree)


# --- which tests run which lines


def covered(place: Path, tree: Path, tests: Sequence[str], *, slow: bool) -> dict[str, Any]:
    """What the tests of a tier run; of tests that fail as they are, nothing."""
    path = place / f"cover{'-slow' if slow else ''}.json"
    if not path.exists():
        wanted = [*tests, "-q", "-m", MARKERS[slow]]
        pid = os.fork()
        if not pid:
            os._exit(_cover(path, tree, wanted))
        os.waitpid(pid, 0)
    return json.loads(path.read_text())


def _cover(path: Path, tree: Path, wanted: Sequence[str]) -> int:
    import coverage
    import pytest

    tracer = coverage.Coverage(data_file=None, include=[f"{tree}/tripletmas/*"], config_file=False)
    before = set(sys.modules)

    class Contexts:
        seconds: dict[str, float] = {}  # noqa: RUF012
        failed: set[str] = set()  # noqa: RUF012

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
            tracer.switch_context(item.nodeid)
            begun = time.process_time()
            result = yield
            self.seconds[item.nodeid] = round(time.process_time() - begun, 3)
            tracer.switch_context("")
            return result

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                self.failed.add(report.nodeid)

    contexts = Contexts()
    tracer.start()
    pytest.main([*wanted, "-p", "no:cacheprovider", f"--basetemp={path.parent}/tmp"], plugins=[contexts])
    tracer.stop()
    data = tracer.get_data()
    tests = {name: taken for name, taken in contexts.seconds.items() if name not in contexts.failed}
    numbers = {name: number for number, name in enumerate(tests)}
    lines = {
        str(Path(file).relative_to(tree)): {
            line: [numbers[each] for each in by if each in numbers]
            for line, by in data.contexts_by_lineno(file).items()
        }
        for file in data.measured_files()
    }
    foreign = sorted(name for name in set(sys.modules) - before if _is_foreign(name, tree))
    found = {"tests": tests, "lines": lines, "foreign": foreign, "failed": sorted(contexts.failed)}
    path.with_suffix(".part").write_text(json.dumps(found))
    path.with_suffix(".part").replace(path)
    return 0


def _is_foreign(name: str, tree: Path) -> bool:
    file = getattr(sys.modules[name], "__file__", None)
    return file is not None and "site-packages" in file and not Path(file).is_relative_to(tree)


# --- judging


def imported(foreign: set[str]) -> None:
    """Import once what every mutant would: it is in memory in each fork."""
    tops = {name for name in foreign if name.count(".") < 3 and not name.startswith(("_", "ray", "grpc", "coverage"))}
    for name in ("torch", "pytest", *sorted(tops)):
        try:
            importlib.import_module(name)
        except BaseException as error:  # a part that wants another one first
            print(f"not imported: {name}: {type(error).__name__}", file=sys.stderr)


def drawn_from(tree: Path, patterns: Sequence[str], count: int, seed: int) -> list[Drawn]:
    files = sorted({file for pattern in patterns for file in tree.glob(pattern)})
    everything = [(str(each.relative_to(tree)), mutant) for each in files for mutant in mutants_of(each.read_text())]
    chosen = random.Random(seed).sample(everything, min(count, len(everything)))
    print(f"{len(everything)} mutants of {len(files)} files, {len(chosen)} drawn", flush=True)
    return [Drawn(number, file, mutant) for number, (file, mutant) in enumerate(chosen)]


def within(tests: Sequence[str], cover: Cover, seconds: float) -> Iterator[str]:
    """As many of the tests as take so long, the first always."""
    taken = 0.0
    for number, test in enumerate(tests):
        taken += cover.seconds[test] + 0.01
        if not number or taken <= seconds:
            yield test


def judged(place: Path, tree: Path, drawn: Drawn, tests: Sequence[str], cover: Cover) -> dict[str, Any]:
    """What the tests say of a mutant: it takes the place of its file, and the file comes back."""
    file, begun = tree / drawn.file, time.monotonic()
    whole, times = file.read_bytes(), file.stat().st_mtime
    status, words = 0, ""
    if tests:
        try:
            file.write_text(drawn.mutant.source)
            os.utime(file, (0, 1_000_000 + drawn.number))  # no other version of the file has this time
            limit = max(LEAST, TIMES * sum(cover.seconds[each] for each in tests))
            status, words = called(place / "mutant", tests, limit)
        finally:
            file.write_bytes(whole)
            os.utime(file, (times, times))
    outcome = {0: "survived", 5: "survived", -1: "hung"}.get(status, "killed")
    mutant = drawn.mutant
    change = {"operator": mutant.operator, "line": mutant.line, "before": mutant.before, "after": mutant.after}
    seconds = round(time.monotonic() - begun, 1)
    return {
        "number": drawn.number,
        "outcome": outcome,
        "file": drawn.file,
        **change,
        "seconds": seconds,
        **({"by": _first_failure(words), "status": status} if outcome != "survived" else {"tests": list(tests)}),
    }


def called(scratch: Path, tests: Sequence[str], limit: float) -> tuple[int, str]:
    """Run tests in a fork: (pytest's status, -1 where it hung or was killed; what it printed)."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    pid = os.fork()
    if not pid:
        os._exit(_child(scratch, tests, limit))
    status, end = 0, time.monotonic() + 10 * limit
    while not (found := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.02)
    status = found[1]
    words = (scratch / "printed").read_text(errors="replace")
    code = os.waitstatus_to_exitcode(status)
    return (-1 if code in (-signal.SIGKILL, -signal.SIGXCPU) else code), words


def _child(scratch: Path, tests: Sequence[str], limit: float) -> int:
    os.setsid()
    printed = os.open(scratch / "printed", os.O_CREAT | os.O_WRONLY)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(scratch / "hypothesis")
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import pytest

    quiet = ["-x", "-q", "-m", "", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return int(pytest.main([*by_file(tests), *quiet, "--tb=line", f"--basetemp={scratch}/tmp"]))


def by_file(tests: Sequence[str]) -> list[str]:
    """Those of one file together, in the order of the first ones: what they share is made once."""
    first: dict[str, list[str]] = defaultdict(list)
    for test in tests:
        first[test.partition("::")[0]].append(test)
    return [test for each in first.values() for test in each]


def _first_failure(words: str) -> str:
    lines = [line for line in words.splitlines() if line.startswith(("FAILED", "ERROR", "E  ", "ImportError"))]
    return lines[-1][:200] if lines else words.strip()[-200:]


# --- the score


def results(place: Path) -> dict[int, dict[str, Any]]:
    """The last word on each mutant."""
    path = place / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {found["number"]: found for found in map(json.loads, lines)}


def told(place: Path, sample: Sequence[Drawn]) -> None:
    found = results(place)
    path = place / "equivalent.txt"
    reasons = path.read_text().splitlines() if path.exists() else []
    equivalent = {int(line.split()[0]) for line in reasons if line.strip()}
    survived = [each for each in found.values() if each["outcome"] == "survived" and each["number"] not in equivalent]
    for each in sorted(survived, key=lambda one: (one["file"], one["line"])):
        print(f"{each['number']}: {each['file']}:{each['line']}: {each['before']!r} -> {each['after']!r}")
    judged_ones = [each for each in found.values() if each["number"] not in equivalent]
    killed = len(judged_ones) - len(survived)
    print(f"{len(found)} of {len(sample)} judged, {len(found) - len(judged_ones)} of them equivalent")
    if judged_ones:
        low, high = wilson(killed, len(judged_ones))
        print(f"{killed} of {len(judged_ones)} noticed: {killed / len(judged_ones):.1%}, 95 % {low:.1%} to {high:.1%}")


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    z = NormalDist().inv_cdf(0.975)
    share, weight = successes / trials, z * z / trials
    middle = (share + weight / 2) / (1 + weight)
    half = z * (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5 / (1 + weight)
    return middle - half, middle + half


if __name__ == "__main__":
    main()
