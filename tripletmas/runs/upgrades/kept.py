"""A plan as it is kept: the map with its evidence, in a folder.

upgrade.json        which store, which models, what was expected of each way, how the map was chosen
map.safetensors     the map
pairs.safetensors   the old vectors of the pairs that it was fitted on, and what it misses of each
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tripletmas.basics.files import damaged, make_folder, read_json, read_tensors, save_json, save_tensors
from tripletmas.basics.version import __version__
from tripletmas.index.choice import Choice
from tripletmas.index.maps import FittedMap
from tripletmas.runs.upgrades.expected import Expected
from tripletmas.runs.upgrades.fitted import Fitted
from tripletmas.stores.identity import Identity

UPGRADE, MAP, PAIRS = "upgrade.json", "map.safetensors", "pairs.safetensors"
_REMEDY = "make the plan anew, by tripletmas upgrade"


def has_plan(folder: str | Path) -> bool:
    """Whether a plan is in a folder."""
    return (Path(folder) / UPGRADE).is_file()


@dataclass(frozen=True)
class Way:
    """One way to go on with a store, and what is to be expected of it.

    Attributes:
        name: in words.
        share: of the points that are embedded again, the others moved; "old" and "as it is" where none are touched.
        recall: at 1, by classes; nan where there are none.
        overlap: of the ten nearest, the share that are those of a gallery which is embedded again.
        seconds: at measured rates, without what the store takes to write.
        vectors, bytes: that are written.
        pictures: that are read, or texts.
    """

    name: str
    share: str | float
    recall: Expected
    overlap: Expected
    seconds: float
    vectors: int
    bytes: int
    pictures: int


@dataclass(frozen=True, eq=False)
class Plan:
    """What is known of an upgrade before anything is done.

    Attributes:
        place, field: of the old vectors.
        points: that have one; `without` have none that is of use.
        was, becomes: what made the old vectors, and what will have made the new ones.
        what: "pictures" or "texts".
        sample: points that both models have embedded; `missing` could not be read, or have changed.
        cosine: between what is stored and what the old model gives, in the middle.
        whole_recall: whether recall is that in the whole store; else in a gallery of half the sample.
    """

    place: str
    field: str
    points: int
    without: int
    was: Identity
    becomes: Identity
    what: str
    sample: int
    missing: int
    cosine: float
    seed: int
    fitted: Fitted
    whole_recall: bool
    ways: tuple[Way, ...]

    @property
    def name(self) -> str:
        """What tells this upgrade from others: its map, and between which models."""
        return f"{self.was.model[:8]}-{self.becomes.model[:8]}-{self.fitted.map.identity[:8]}"

    def save(self, folder: str | Path) -> None:
        """Write it into a folder, in place of the plan that is there.

        Raises:
            OSError: if it cannot be written.
        """
        make_folder(Path(folder))
        self.fitted.map.save(Path(folder) / MAP)
        save_tensors(Path(folder) / PAIRS, {"old": self.fitted.old, "missed": self.fitted.missed})
        save_json(Path(folder) / UPGRADE, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """What is known, without the map itself."""
        choice = self.fitted.choice
        about = {key: value for key, value in vars(self).items() if key not in ("was", "becomes", "fitted", "ways")}
        return {
            "version": __version__,
            **about,
            "was": self.was.to_json(),
            "becomes": self.becomes.to_json(),
            "map": {"kind": choice.name, "identity": self.fitted.map.identity},
            "choice": {"scores": choice.scores, "num_pairs": choice.num_pairs},
            "ways": [asdict(way) for way in self.ways],
        }

    @classmethod
    def open(cls, folder: str | Path) -> Plan:
        """The plan in a folder.

        Raises:
            ValueError: if there is none, or it is damaged.
        """
        file = Path(folder) / UPGRADE
        if not file.is_file():
            raise ValueError(f"{folder} holds no plan of an upgrade: {_REMEDY}")
        said = read_json(file, _REMEDY)
        move = FittedMap.open(Path(folder) / MAP)
        tensors, _ = read_tensors(Path(folder) / PAIRS, _REMEDY)
        try:
            if said["map"]["identity"] != move.identity:
                raise ValueError(f"{MAP} is another one")
            choice = Choice(said["map"]["kind"], said["choice"]["scores"], said["choice"]["num_pairs"])
            fields = {key: said[key] for key in _PLAIN}
            return cls(
                **fields,
                was=Identity.from_json(said["was"]),
                becomes=Identity.from_json(said["becomes"]),
                fitted=Fitted(move, choice, tensors["old"], tensors["missed"]),
                ways=tuple(_way(each) for each in said["ways"]),
            )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise damaged(file, error, _REMEDY) from None


_PLAIN = ("place", "field", "points", "without", "what", "sample", "missing", "cosine", "seed", "whole_recall")


def _way(said: dict[str, Any]) -> Way:
    recall, overlap = (
        Expected(*(math.nan if each is None else each for each in said[key])) for key in ("recall", "overlap")
    )
    return Way(**{**said, "recall": recall, "overlap": overlap})
