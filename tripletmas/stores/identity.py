"""What made the vectors of a store: kept in the store itself, beside them.

Vectors of different models do not compare, and nothing in a vector tells which one made it: two networks of one width
search each other's vectors without an error, and find nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from tripletmas.index.images import Reading, Transform
from tripletmas.stores.store import COSINE, INNER_PRODUCT, L2, DamagedNotes, Store, field_of

FORMAT = 1
_SHOWN = 12  # digits of a hash
_HALFWAY = {"switching": "--switch", "returning": "--rollback"}  # stage of an upgrade -> what goes on with it


@dataclass(frozen=True)
class Identity:
    """What made the vectors of one field.

    Attributes:
        model: hash of the weights (`basics.weights.weight_hash`) in whose space they lie.
        shown: how an image or a text became what the model was shown.
        dim, metric, normalize: of the vectors, and how they are compared; `metric` "inner_product" or "l2".
        source: the model as a user names it: a run, timm:NAME; to find it again.
        after_task: of a run; -1 of another model.
        embedded_by: hash of the weights that read the images, where a map moved the vectors from there; else "".
    """

    model: str
    shown: Transform | Reading
    dim: int
    metric: str
    normalize: bool
    source: str = ""
    after_task: int = -1
    embedded_by: str = ""

    @property
    def compared_by(self) -> str:
        """The metric of a store: the cosine, where vectors are of unit length."""
        if self.metric == L2:
            return L2
        return COSINE if self.normalize else INNER_PRODUCT

    def to_json(self) -> dict[str, Any]:
        """As `from_json` takes it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Identity:
        """The identity that became a JSON object; TypeError or LookupError where it is none."""
        shown = dict(content["shown"])
        how = Reading(**shown) if "tokenizer" in shown else Transform(**shown)
        return cls(**{**content, "shown": how})

    def differs(self, other: Identity) -> str | None:
        """In what vectors of another identity do not compare with these, in words; None where they do."""
        if self.model != other.model:
            return f"the model {self.model[:_SHOWN]} ({self.source}), not {other.model[:_SHOWN]} ({other.source})"
        for name in ("shown", "dim", "metric", "normalize"):
            here, there = getattr(self, name), getattr(other, name)
            if here != there:
                return f"{name} {here}, not {there}"
        return None


@dataclass(frozen=True)
class Upgrade:
    """An upgrade of a store that has begun, and is neither taken back nor finished.

    Attributes:
        name: tells it from others.
        old, new: fields: whose vectors are moved, and where to.
        stage: "applying", "applied", "switching", "switched", "returning", "finishing".
        active, kept: after the switch, see `store.Switched`.
        directory: where its map and its progress are kept.
    """

    name: str
    old: str
    new: str
    stage: str
    directory: str
    active: str = ""
    kept: str = ""


@dataclass(frozen=True)
class Notes:
    """All that we keep in a store.

    Attributes:
        identities: field -> what made its vectors.
        upgrade: None where none is under way.
    """

    identities: Mapping[str, Identity]
    upgrade: Upgrade | None = None

    def with_identity(self, name: str, identity: Identity | None) -> Notes:
        """The same with another identity of a field; None: with none."""
        others = {key: value for key, value in self.identities.items() if key != name}
        return replace(self, identities=others if identity is None else {**others, name: identity})


def read_notes(store: Store) -> Notes:
    """What we keep in a store.

    Raises:
        ValueError: if it is of another format, or damaged.
    """
    found = store.notes()
    if not found:
        return Notes({})
    if found.get("format") != FORMAT:
        raise ValueError(
            f"{store.place} has notes of format {found.get('format')}, and this version of tripletmas reads {FORMAT}"
        )
    try:
        identities = {name: Identity.from_json(each) for name, each in found["fields"].items()}
        upgrade = found.get("upgrade")
        return Notes(identities, upgrade and Upgrade(**upgrade))
    except (LookupError, TypeError, AttributeError) as error:
        raise DamagedNotes(
            f"the notes of tripletmas in {store.place} are damaged ({error}): --assume gives new ones"
        ) from None


def write_notes(store: Store, notes: Notes) -> None:
    """Keep them, in place of those that are there; none at all where there is nothing to say."""
    if not notes.identities and notes.upgrade is None:
        store.set_notes({})
        return
    fields = {name: identity.to_json() for name, identity in notes.identities.items()}
    store.set_notes({"format": FORMAT, "fields": fields, "upgrade": notes.upgrade and asdict(notes.upgrade)})


def active_field(store: Store, notes: Notes) -> str:
    """The field whose vectors are to be searched: while an upgrade is under way the one that it has come to.

    Raises:
        ValueError: as `field_of`; if a switch or a rollback was killed: the vectors may be of either model.
    """
    if notes.upgrade is not None:
        if step := _HALFWAY.get(notes.upgrade.stage):
            raise ValueError(
                f"{store.place} is between two models: a step of its upgrade has not ended, or was killed; tripletmas "
                f"upgrade {store.place} {step} finishes it"
            )
        return notes.upgrade.active or notes.upgrade.old
    return field_of(store).name


def identity_of(store: Store, notes: Notes, name: str) -> Identity:
    """What made the vectors of a field.

    Raises:
        ValueError: if the store does not say.
    """
    if (identity := notes.identities.get(name)) is None:
        raise ValueError(
            f"what made the vectors {name!r} of {store.place} is not known: tripletmas query {store.place} IMAGE "
            "--assume RUN notes it, after a look at some of its pictures"
        )
    return identity
