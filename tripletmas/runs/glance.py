"""Which models a run has, by the hashes of their weights, and what its records say; without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tripletmas.basics.arrays import Unclear, read_sealed, weight_hash
from tripletmas.basics.files import read_json
from tripletmas.basics.shape import check_shape
from tripletmas.runs.identity import read_config
from tripletmas.runs.records import Record, Records
from tripletmas.runs.shapes import FORECASTS
from tripletmas.runs.task_files import numbered


@dataclass(frozen=True)
class RunGlance:
    """What `index info` asks of a run.

    Attributes:
        hashes: of the model after each task that is done, as `models.weight_hashes`.
        forecasts: what was expected of each update that was asked for, as `RunDirectory.forecasts`.
    """

    hashes: tuple[str, ...]
    all_records: Sequence[Record]
    forecasts: Sequence[Record]

    def records(self, kind: str) -> list[Record]:
        """The records of a kind."""
        return [record for record in self.all_records if record.get("kind") == kind]


def read_run_glance(path: str | Path) -> RunGlance:
    """The models of a run, whose files are checked as `RunDirectory` does.

    Raises:
        Unclear: for a run without a finished task, for one of an earlier version, for one with a file that is damaged
            or missing, and where there is no run: `RunDirectory` tells of those.
    """
    try:
        folder = Path(path)
        records = Records(folder / "metrics.jsonl", read_config(folder / "config.yaml")[1])
        numbers = numbered(folder / "weights" / "task")
        if not records.run or not numbers or numbers != list(range(len(numbers))):
            raise Unclear(f"{path} has no finished task, or no identity")
        records.check_sum()
        hashes = tuple(_hash(folder, f"weights/task{number:02d}.safetensors", records) for number in numbers)
        return RunGlance(hashes, records.read(), _forecasts(folder, records))
    except (ValueError, OSError) as error:
        raise Unclear(str(error)) from error


def _forecasts(run: Path, records: Records) -> list[Record]:
    name = "forecast.json"
    if not (run / name).exists():
        return []
    found = read_json(run / name, "it is left out", records.expected(name))
    check_shape(found, FORECASTS)
    return found


def _hash(run: Path, name: str, records: Records) -> str:
    return weight_hash(read_sealed(run / name, place=records.expected(name))[0])
