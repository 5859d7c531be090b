"""What the tests of commands share."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tripletmas.objectives import kinds
from tripletmas.runs import catalog
from tripletmas.runs import task as task_training
from tripletmas.runs.directory import RunDirectory

# options of a small run on digits
SMALL = [
    *("--data.tasks", "[2,2,6]", "--model.hidden", "[16]", "--model.dim", "8"),
    *("--training.epochs", "1", "--device", "cpu"),
]


@contextmanager
def restored_tables() -> Iterator[None]:
    """Training enters parts of one's own into the tables of parts: afterwards they are as they were."""
    tables = (catalog.STRATEGIES, catalog.MODELS, kinds.KINDS, *catalog.OWN.values())
    before = [dict(table) for table in tables]
    yield
    for table, was in zip(tables, before, strict=True):
        table.clear()
        table.update(was)


def failed(result: tuple[int, str, str], message: str) -> None:
    """Whether a command failed with one sentence, in which this is found."""
    status, _, complaint = result
    assert status == 2
    assert complaint.splitlines()[-1].startswith("tripletmas: error: ")
    assert re.search(message, complaint), complaint
    assert "Traceback" not in complaint


def interrupt_after(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """Ctrl-C in the epoch after so many."""
    real, calls = task_training._train_epoch, []

    def train_epoch(*arguments):
        calls.append(1)
        if len(calls) > epochs:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(task_training, "_train_epoch", train_epoch)


def earlier_version(run: Path) -> Path:
    """The same folder as a run of a version that wrote no checksums: its JSON files may be written by hand."""
    config, records = run / "config.yaml", run / "metrics.jsonl"
    config.write_text(re.sub(r"^# run .*\n", "", config.read_text(), flags=re.MULTILINE))
    if records.exists():
        records.write_text(re.sub(r', "seal": "\w+"}$', "}", records.read_text(), flags=re.MULTILINE))
    for place in run.glob("checkpoint/*/place.json"):
        known = {key: json.loads(place.read_text())[key] for key in ("task", "epoch")}
        place.write_text(json.dumps({**known, "record_bytes": records.stat().st_size}))
    return run


def write_config(run: Path, text: str) -> None:
    """Change the configuration of a run by hand, as the complaint about that says."""
    path = run / "config.yaml"
    last = path.read_text().splitlines()[-1]
    path.write_text("\n".join([*(line for line in text.splitlines() if line != last), last, ""]))
    with pytest.raises(ValueError, match=r"config\.yaml has been changed since it was written") as caught:
        RunDirectory(run).config()
    now, was = re.findall(r"write (\w+) at its end in place of (\w+)", str(caught.value))[0]
    path.write_text(path.read_text().replace(was, now))
