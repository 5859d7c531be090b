"""HTML from the templates, with its pictures inside: a page is one file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL.Image import Image

from tripletmas.report import texts
from tripletmas.report.numbers import begun, number
from tripletmas.report.style import THEMES


def render(template: str, values: Mapping[str, object]) -> str:
    """The page that a template makes of these values; what is in them is text, never markup."""
    return _environment().get_template(template).render({"texts": texts, "themes": THEMES, **values})


def data_uri(image: Image, kind: str, **options: object) -> str:
    """A picture as the source of an <img>; `kind` is "png" or "webp", the options are Pillow's."""
    content = io.BytesIO()
    image.save(content, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode('ascii')}"


@cache
def _environment() -> Environment:
    loader = PackageLoader("tripletmas.report", "templates")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters.update(begun=begun, number=number)
    return made
