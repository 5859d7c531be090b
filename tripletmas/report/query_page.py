"""A page of queries and their nearest images, self-contained: thumbnails are embedded in it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from tripletmas.data.image_paths import ImagesAt

THUMBNAIL = 160  # pixels, both ways: the centre square, which is what a model is shown

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }} · tripletmas</title>
<style>
:root { color-scheme: light dark; --ink: #1b1b1f; --soft: #5c5c66; --paper: #fff; --card: #f3f3f6; --line: #d8d8df; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececf1; --soft: #a5a5b0; --paper: #17171b; --card: #232329; --line: #3a3a43; }
}
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .2rem; }
.soft { color: var(--soft); margin: 0 0 1rem; overflow-wrap: anywhere; }
.note { border-left: 4px solid #c77700; background: var(--card); padding: .5rem .8rem; }
section { border-top: 1px solid var(--line); padding: 1.2rem 0; display: grid; gap: 1.2rem;
  grid-template-columns: 170px minmax(0, 1fr); }
section > ol:nth-child(2) { grid-column: 1 / -1; }
h2 { grid-column: 1 / -1; font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
ol { list-style: none; margin: 0; padding: 0; display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(136px, 1fr)); }
figure { margin: 0; padding: 5px; background: var(--card); border-radius: 8px; }
.query { align-self: start; outline: 2px solid var(--soft); }
img, .missing { display: block; width: 100%; height: auto; aspect-ratio: 1; border-radius: 5px; object-fit: cover; }
.missing { display: grid; place-content: center; text-align: center; border: 1px dashed var(--soft);
  color: var(--soft); box-sizing: border-box; font-size: .85rem; }
figcaption { font-size: .82rem; padding: .3rem .1rem 0; }
figcaption b { display: block; font-variant-numeric: tabular-nums; }
.path { color: var(--soft); font-size: .72rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  section { grid-template-columns: minmax(0, 1fr); }
  .query { max-width: 160px; }
  ol { grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); }
}
</style>
</head>
<body>
{% macro picture(path, text) %}{% set image = pictures.get(path) or thumbnail(path) %}{% if image -%}
<img src="{{ image }}" alt="{{ text }}" width="160" height="160">
{%- else %}<div class="missing" role="img" aria-label="{{ text }}: the file is missing">missing</div>
{% endif %}{% endmacro %}
<h1>{{ title }}</h1>
<p class="soft">{{ about }}; scores: {{ measure }}, larger is nearer</p>
{% for note in notes %}<p class="note">{{ note }}</p>{% endfor %}
{% for found in queries %}
<section>
<h2>{{ found.query }}</h2>
{% if found.pictured | default(true) %}
<figure class="query">{{ picture(found.query, "query " ~ found.query) }}<figcaption><b>query</b></figcaption></figure>
{% endif %}
<ol>
{% for each in found.neighbours %}
<li><figure>{% if each.pictured | default(true) %}
{{ picture(each.path, "rank " ~ each.rank ~ ": " ~ (each.label or "without a label")) }}
{% endif %}
<figcaption><b>{{ each.rank }} · {{ "%.6f" | format(each.score) }}</b>{{ each.label or "no label" }}
<div class="path">{{ each.path }}</div></figcaption></figure></li>
{% endfor %}
</ol>
</section>
{% endfor %}
</body>
</html>
"""


def picture_grid(
    queries: Sequence[dict[str, Any]],
    *,
    about: str,
    measure: str,
    notes: Sequence[str] = (),
    pictures: Mapping[str, str] | None = None,
) -> str:
    """The page as HTML. An image that has vanished or cannot be read is shown as missing.

    Args:
        queries: `query`, a path, and `neighbours`, each with rank, score, label (None: no label) and path. What has
            `pictured` False is no image.
        about: what was searched.
        measure: what the scores are.
        notes: sentences that a reader should see first.
        pictures: path -> data URI, for images that have no file.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    title = f"Nearest images of {len(queries)} queries" if len(queries) != 1 else "Nearest images"
    return environment.from_string(_PAGE).render(
        title=title,
        queries=queries,
        about=about,
        measure=measure,
        notes=notes,
        thumbnail=thumbnail,
        pictures=pictures or {},
    )


def thumbnail(path: str) -> str | None:
    """An image file as a JPEG data URI; None if it cannot be read."""
    try:
        pixels = ImagesAt([path], size=THUMBNAIL, channels=3)[0]
    except ValueError:
        return None
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
