"""An index file as a gallery that is served, and the model of its run.

Shapes: q queries, r rows of the index, k ranks, dim.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from threading import Lock

import torch
from torch import Tensor

from tripletmas.basics.sentences import suggestion
from tripletmas.index.base import Index, unit
from tripletmas.index.exact import ExactIndex
from tripletmas.index.images import ImageIndex, Transform
from tripletmas.runs.indexed import model_of, moves_back, refuse_collapsed, stale_vectors
from tripletmas.runs.models import RunModel
from tripletmas.runs.moves import ways_out
from tripletmas.serve.encoder import Encoder
from tripletmas.serve.gallery import SOME, Facts, Item, Neighbour, Refusal, Wanted

OF_RUN = "run"  # --move-queries without the name of a map
_KEPT = 16  # searchers of single labels or parts
_IN_MEMORY = 2**31  # bytes of vectors; more stay mapped

Move = Callable[[Tensor], Tensor]


def open_index(
    path: str,
    *,
    run: str | None = None,
    after: int | None = None,
    device: str = "auto",
    trust_code: bool = False,
    allow_stale: bool = False,
    move_queries: str | None = None,
    force: bool = False,
) -> tuple[IndexGallery, Encoder]:
    """The index in a file, and the model that embeds what it is asked with.

    Args:
        run: in place of the run that the index names.
        after: the model after this task; None: the present one.
        trust_code: execute the run's parts of one's own as they were recorded.
        allow_stale: search vectors of other models as they are.
        move_queries: move the queries back to the model of each stale vector by maps of this kind; "run": of the
            run's own.
        force: also where the model gives all images one and the same vector.

    Raises:
        ValueError: if it cannot be searched: missing, damaged, empty, collapsed, stale where that is not allowed, or
            of another model.
    """
    index = _in_memory(ImageIndex.open(path))
    if not len(index):
        raise ValueError(f"{path} holds no vectors: tripletmas index add {path} --images FOLDER")
    if not force:
        refuse_collapsed(index, path)
    model = model_of(index, run, after=after, device=device, trust_code=trust_code)
    moves: Mapping[int, Move] | None = None
    note = ""
    if index.stale(model.hash):
        note = stale_vectors(index, model)
        if move_queries:
            moves, _ = moves_back(index, model, None if move_queries == OF_RUN else move_queries, path)
            note += "; queries are moved back to them"
        elif allow_stale:
            note += ": scores with them do not compare"
        else:
            raise ValueError(
                f"{path}: {note}, so scores do not compare: {ways_out(path)}, --move-queries moves the queries back "
                "to them, --allow-stale searches them as they are"
            )
    shown = index.settings.transform
    encoder = Encoder(model, invert=isinstance(shown, Transform) and shown.invert)
    return IndexGallery(index, model, path=path, moves=moves, note=note), encoder


def _in_memory(index: ImageIndex) -> ImageIndex:
    """The index, of which no part changes, or is gone, when its file is written over in place.

    Ours never are, but what copies one may do so. A very large index, or one that is searched on the disk, stays
    mapped: its file is to be replaced by a rename.
    """
    small = replace(index, ids=index.ids.clone(), part=index.part.clone(), labels=index.labels.clone())
    if index.settings.on_disk or index.vectors.numel() * index.vectors.element_size() > _IN_MEMORY:
        return small
    serialized = None if index.serialized is None else index.serialized.clone()
    return replace(small, vectors=index.vectors.clone(), serialized=serialized)


class IndexGallery:
    """An index, searched by vectors of one model.

    Args:
        path: of its file.
        moves: for each part, what moves queries to the space that it lies in; None: they are searched as they are.
        note: what a reader has to know of what is found.
    """

    def __init__(
        self,
        index: ImageIndex,
        model: RunModel,
        *,
        path: str,
        moves: Mapping[int, Move] | None = None,
        note: str = "",
    ):
        self._index, self._path, self._moves, self._note = index, path, moves, note
        self._stale = len(index.of_parts(index.stale(model.hash)))
        self._spaces = {index.parts[number].moved_to for number in index.part.unique().tolist()}
        counts = Counter(index.labels[index.labels >= 0].tolist())
        self._label_counts = {index.class_names[label]: count for label, count in sorted(counts.items())}
        self._kept: OrderedDict[tuple[int | None, str | None], tuple[Index, Tensor]] = OrderedDict()
        self._lock = Lock()

    def facts(self) -> Facts:
        """See `Gallery.facts`."""
        s = self._index.settings
        measure = "negative squared distance" if s.metric == "l2" else "cosine" if s.normalize else "inner product"
        return Facts(
            name=self._path,
            size=len(self._index),
            dim=s.dim,
            metric=s.metric,
            normalize=s.normalize,
            measure=measure,
            stale=self._stale,
            labels=self._label_counts,
            some=[self._item(row) for row in range(0, len(self._index), -(-len(self._index) // SOME))],
            filters=bool(self._label_counts),
            note=self._note,
            more={"kind": s.kind},
        )

    def search(self, vectors: Tensor, wanted: Wanted) -> list[list[Neighbour]]:
        """See `Gallery.search`. Those of one label, and of parts that queries are moved to, are searched exactly."""
        if wanted.label is not None and wanted.label not in self._label_counts:
            near = suggestion(wanted.label, self._label_counts)
            raise Refusal(404, f"nothing in {self._path} has the label {wanted.label!r}{near}")
        k = min(wanted.k, len(self._index))
        scores, rows = self._nearest(vectors, wanted.label, k)
        return [
            [
                Neighbour(self._item(row), score)
                for score, row in zip(near, nearest, strict=True)
                if row >= 0 and (wanted.min_score is None or score >= wanted.min_score)
            ]
            for near, nearest in zip(scores.tolist(), rows.tolist(), strict=True)
        ]

    def item(self, id: str) -> Item:
        """See `Gallery.item`."""
        number = int(id) if id.isascii() and id.isdigit() and len(id) < 19 else -1
        row = int(torch.searchsorted(self._index.ids, number))
        if number < 0 or row >= len(self._index) or int(self._index.ids[row]) != number:
            raise Refusal(404, f"nothing in {self._path} has the id {id[:40]}")
        return self._item(row)

    def vector(self, item: Item) -> Tensor | None:
        """See `Gallery.vector`: of vectors in several spaces, or that queries are moved to, none is a query."""
        if len(self._spaces) > 1 or self._moves is not None:
            return None
        return self._index.vectors[int(torch.searchsorted(self._index.ids, int(item.id)))]

    def _item(self, row: int) -> Item:
        index = self._index
        text = index.texts[row] if index.texts else None
        return Item(int(index.ids[row]), index.label_of(row), index.paths[row], text)

    def _nearest(self, vectors: Tensor, label: str | None, k: int) -> tuple[Tensor, Tensor]:
        """(scores, rows), (q, k) each, best first; rows are -1 where the gallery ends."""
        if self._moves is None:
            if label is None:
                return self._index.search(vectors, k)
            return self._of(None, label, vectors, k)
        asked = unit(vectors) if self._index.settings.normalize else vectors
        found = [self._of(number, label, move(asked), k) for number, move in self._moves.items()]
        scores, rows = (torch.cat(each, dim=1) for each in zip(*found, strict=True))
        by_row = rows.argsort(dim=1)  # equal scores come in the order of the index, as in one that is searched at once
        scores, rows = scores.gather(1, by_row), rows.gather(1, by_row)
        best = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
        return scores.gather(1, best), rows.gather(1, best)

    def _of(self, part: int | None, label: str | None, vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The same among the rows of one part, or one label, or both."""
        searcher, own = self._searcher(part, label)
        scores, positions = searcher.search(vectors, k)
        return scores, torch.where(positions >= 0, own[positions.clamp_min(0)], -1) if len(own) else positions

    def _searcher(self, part: int | None, label: str | None) -> tuple[Index, Tensor]:
        """(an index over some rows by their positions, those rows); the last few that were asked for are kept."""
        key = (part, label)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        index, s = self._index, self._index.settings
        of_label = index.labels == index.class_names.index(label) if label is not None else index.labels >= -1
        own = (of_label if part is None else of_label & (index.part == part)).nonzero().flatten()
        made = ExactIndex.over(index.vectors[own].contiguous(), metric=s.metric, normalize=s.normalize), own
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return made
