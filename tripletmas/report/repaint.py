"""A figure that was drawn in one theme, in the colours of another: to lay it out again would take twice as long.

Only colours of the theme are changed. Those of a map that stand for values, and what is written on its cells, are the
same in all themes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.collections import Collection
from matplotlib.colors import to_hex, to_rgb, to_rgba, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from tripletmas.report.style import MAP, Theme, halo

_Colours = Mapping[str, str]  # "#rrggbb" -> the same in the other theme


def repaint(figure: Figure, old: Theme, new: Theme) -> None:
    """Give a figure that was drawn in one theme the colours of another."""
    lines, letters = _of_lines(old, new), _of_letters(old, new)
    for artist in dict.fromkeys([*figure.findobj(), *_of_ticks(figure)]):
        _paint(artist, letters if isinstance(artist, Text) else lines, new)


def _of_ticks(figure: Figure) -> Iterator[Artist]:
    """The parts of ticks: `findobj` passes those over that a locator, asked again, would not set."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            for tick in (*axis.majorTicks, *axis.minorTicks):
                yield from tick.findobj()


@cache
def _of_letters(old: Theme, new: Theme) -> _Colours:
    """The same of letters, which are darker or brighter where they have to be; white ones stand on cells, and stay."""
    named = {one: other for one, other in _of_lines(old, new).items() if one != old.background}
    return {old.readable(one): new.readable(other) for one, other in named.items()}


@cache
def _of_lines(old: Theme, new: Theme) -> _Colours:
    """The colours of a theme; those of series that follow each other lie along the map."""
    colours = colormaps[MAP]  # a copy, each time it is asked for
    steps = [(step + 0.5) / colours.N for step in range(colours.N)]
    (first, last), (start, end) = old.ramp, new.ramp
    found = {
        to_hex(colours(place)): to_hex(colours(start + (place - first) / (last - first) * (end - start)))
        for place in steps
    }
    named = [each.name for each in fields(Theme) if isinstance(getattr(old, each.name), str) and each.name != "name"]
    found |= {getattr(old, name): getattr(new, name) for name in named}
    found |= dict(zip(old.series, new.series, strict=True))
    return {to_hex(one): to_hex(other) for one, other in found.items()}


def _paint(artist: Artist, colours: _Colours, theme: Theme) -> None:
    if isinstance(artist, Text):
        artist.set_color(_one(artist.get_color(), colours))
        if artist.get_path_effects():
            artist.set_path_effects(halo(theme))
    elif isinstance(artist, Line2D):
        artist.set_color(_one(artist.get_color(), colours))
        _change(artist.get_markerfacecolor, artist.set_markerfacecolor, colours)
        _change(artist.get_markeredgecolor, artist.set_markeredgecolor, colours)
    elif isinstance(artist, Patch):
        artist.set_facecolor(_one(artist.get_facecolor(), colours))
        artist.set_edgecolor(_one(artist.get_edgecolor(), colours))
    elif isinstance(artist, Collection):
        _paint_many(artist, colours)


def _paint_many(artist: Collection, colours: _Colours) -> None:
    """Faces that stand for values stay."""
    artist.set_edgecolor(_all(artist.get_edgecolor(), colours))
    if artist.get_array() is None:
        artist.set_facecolor(_all(artist.get_facecolor(), colours))


def _change(get: Callable[[], Any], change: Callable[[Any], None], colours: _Colours) -> None:
    """A colour that may be none, or that of something else."""
    if not isinstance(get(), str) or get() not in ("none", "auto"):
        change(_one(get(), colours))


def _one(colour: Any, colours: _Colours) -> Any:
    red, green, blue, alpha = to_rgba(colour)
    found = colours.get(to_hex((red, green, blue)))
    return colour if found is None else (*to_rgb(found), alpha)


def _all(given: Any, colours: _Colours) -> list[Any]:
    return [_one(tuple(each), colours) for each in to_rgba_array(given)]
