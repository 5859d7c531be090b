"""What this process has of a linear map whose weights are spread over processes (`fully_shard`): rows of its matrices.

A row of the gradient needs the Gram and its own row alone, so it is computed where it is kept; only numbers, such as
the share of a response that has changed, are sums over processes. Of a map whose outputs are no rows of its weight
(transposed ones), or of which a part only is spread, every process computes the whole.

Rows are those of all groups, one after the other, which is how they lie in memory. A process whose rows begin or end
inside a group, and that has rows of several, has zeros in place of the rows that others have of these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tripletmas.basics.distributed import is_spread, own_part, whole
from tripletmas.basics.rows import own_rows, sum_of_parts
from tripletmas.protection.structured.linear_map import LinearMap

_BY_ENTRY = ("scale", "table", "whole")  # the kinds whose rows are single numbers


class LocalMap(NamedTuple):
    """Attributes:
    map: all of it.
    like: one of its parameters, spread over those processes that have a part; None where it is computed as a whole.
    first, last: the rows that this process has, from and to.
    before, after: how many rows of zeros complete its first and its last group.
    groups: those that it has a part of.
    """

    map: LinearMap
    like: Tensor | None = None
    first: int = 0
    last: int = 0
    before: int = 0
    after: int = 0
    groups: slice = slice(None)

    def change(self, current: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Tensor:
        """The matrices (groups, rows, columns) of what the parameters have changed since the reference; those that have
        none have not."""

        def of(name: str) -> Tensor:
            now, then = current[name], reference.get(name)
            if self.like is not None:
                now, then = self.rows(now), None if then is None else self.rows(then)
            difference = torch.zeros_like(now) if then is None else now - then
            return difference if self.like is not None else self.map.rows(whole(difference))

        return self._matrices({name: of(name) for name in self.map.parameters})

    def shape(self, like: Mapping[str, Tensor]) -> tuple[int, int, int]:
        """(groups, rows, columns) of its matrices."""
        groups, rows, columns = self.map.shape(like)
        if self.like is not None:
            groups = self.groups.stop - self.groups.start
            rows = (self.before + self.last - self.first + self.after) // groups
        return groups, rows, columns

    def spread(self, matrices: Tensor, like: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The matrices as parts of the parameters: names, and what `rows` of tensors like them are."""
        if self.like is not None:
            flat = matrices.reshape(-1, matrices.shape[-1])[self.before :][: self.last - self.first]
            for name, part in self.map.columns(flat):
                yield name, part.reshape(self.rows(like[name]).shape)
            return
        for name, part in self.map.spread(matrices, like):
            if is_spread(like[name]):
                begin, end = self._within(like[name])
                part = part[begin - self.map.start : end - self.map.start]
            yield name, part

    def rows(self, parameter: Tensor) -> Tensor:
        """What this process has of the map's rows of a parameter: a view."""
        if not is_spread(parameter):
            return self.map.rows(parameter)
        (begin, end), (here, _) = self._within(parameter), own_rows(parameter)
        return own_part(parameter)[max(begin - here, 0) : max(end - here, 0)]

    def total(self, values: Tensor) -> Tensor:
        """The sum over processes of what each has of this map."""
        return values if self.like is None else sum_of_parts(values, self.like)

    def total_of_groups(self, values: Tensor, count: int) -> Tensor:
        """The same (count, ...) of values (groups, ...), for each of this many groups."""
        if self.like is None:
            return values
        everywhere = values.new_zeros(count, *values.shape[1:])
        everywhere[self.groups] = values
        return self.total(everywhere)

    def part_of(self, matrices: Tensor) -> Tensor:
        """Of the whole map's matrices what this process has."""
        if self.like is None:
            return matrices
        return self._in_groups(matrices.flatten(0, 1)[self.first : self.last])

    def whole_of(self, matrices: Tensor, like: Mapping[str, Tensor]) -> Tensor:
        """The whole map's matrices, of what each process has of them; all must ask."""
        if self.like is None:
            return matrices
        shape = self.map.shape(like)
        found = matrices.new_zeros(shape).flatten(0, 1)
        found[self.first : self.last] = matrices.flatten(0, 1)[self.before :][: self.last - self.first]
        return self.total(found).view(shape)

    def _matrices(self, pieces: Mapping[str, Tensor]) -> Tensor:
        if self.like is None:
            return self.map.joined(pieces)
        rows = self.last - self.first
        parts = [
            piece.flatten(1) if name == self.map.weight and self.map.kind not in _BY_ENTRY else piece.reshape(rows, 1)
            for name, piece in pieces.items()
        ]
        return self._in_groups(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0])

    def _in_groups(self, rows: Tensor) -> Tensor:
        if self.before or self.after:
            rows = torch.nn.functional.pad(rows, (0, 0, self.before, self.after))
        groups = self.groups.stop - self.groups.start
        return rows.reshape(groups, len(rows) // groups, rows.shape[-1])

    def _within(self, parameter: Tensor) -> tuple[int, int]:
        """From where to where, of a parameter's rows, this process has those that are the map's."""
        begin, end = own_rows(parameter)
        start, stop = self.map.start, len(parameter) if self.map.stop is None else self.map.stop
        begin = min(max(begin, start), stop)
        return begin, max(begin, min(end, stop))


def local_map(each: LinearMap, parameters: Mapping[str, Tensor]) -> LocalMap:
    """What this process has of a map, given the model's parameters."""
    own = [parameters[name] for name in each.parameters]
    spread = [parameter for parameter in own if is_spread(parameter)]
    here = LocalMap(each)
    if len(spread) < len(own) or each.kind.startswith("transposed") or len({_cut(one) for one in spread}) > 1:
        return here
    begin, end = here._within(own[0])
    size = math.prod(own[0].shape[1:]) if each.kind in _BY_ENTRY else 1
    first, last = (size * (row - each.start) for row in (begin, end))
    stop = len(own[0]) if each.stop is None else each.stop
    in_group = size * (stop - each.start) // each.groups
    from_group = first // in_group if last > first else 0
    to_group = -(-last // in_group) if last > first else 1
    before, after = first - from_group * in_group, to_group * in_group - last
    if to_group - from_group == 1:
        before = after = 0
    return LocalMap(each, own[0], first, last, before, after, slice(from_group, to_group))


def totals(maps: Sequence[LocalMap], values: Sequence[Tensor]) -> list[Tensor]:
    """The sum over processes of what each has of every map, a scalar; they are sent together."""
    numbers = [number for number, each in enumerate(maps) if each.like is not None]
    found = list(values)
    if numbers:
        sums = sum_of_parts(torch.stack([values[number] for number in numbers]), maps[numbers[0]].like)
        for number, total in zip(numbers, sums.unbind(), strict=True):
            found[number] = total
    return found


def _cut(parameter: Tensor) -> tuple[object, int]:
    """By which two parameters that are spread alike are known."""
    return getattr(parameter, "device_mesh", None), len(parameter)
