"""A run's model to take elsewhere: written as a folder that stands alone (`models.exported`).

`deployed.from_pretrained` loads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tripletmas.basics.version import __version__
from tripletmas.data.tasks import learned_classes
from tripletmas.data.tokens import Tokenizer
from tripletmas.models.exported import write_exported
from tripletmas.models.making import is_built_in, without_start
from tripletmas.models.text import save_encoder, text_encoder_of
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import config_of
from tripletmas.runs.models import RunModel, load_with_tasks


def save_pretrained(run: RunDirectory, folder: str | Path, *, after: int | None = None) -> RunModel:
    """Write the model that a run deploys after a task as a folder that stands alone, with a card of its scores.

    Args:
        after: the number of the task; None for the last that is done.

    Raises:
        ValueError: if that task is not done yet, or something is in the folder.
    """
    (model, learned), config = load_with_tasks(run, after=after, device="cpu"), config_of(run)
    classes = learned_classes(learned)
    card = _card(run, config, model, classes)
    if encoder := text_encoder_of(model.model):
        save_encoder(encoder, Path(folder), card)
        return model
    options = without_start(config["model"]["name"], config["model"])
    options.pop("lora", None)  # how it was trained, and nothing that it is
    write_exported(folder, model.model, options, model.prepared, classes=classes, card=card)
    return model


def _card(run: RunDirectory, config: Mapping[str, Any], model: RunModel, classes: Sequence[str]) -> str:
    """The text of a model card: what it is, how good, how images are prepared or texts are read, how it is used."""
    texts = isinstance(model.shown, Tokenizer)
    name = config["model"]["name"]
    name = name if (alone := is_built_in(name)) else Path(name).name  # of a file, not where it lies
    use = _USE_OF_TEXTS if texts else _USE if alone else (_USE_OF_CODE.format(name=name),)
    strategy, data = config["strategy"]["name"], config["data"]["name"]
    lines = [
        *("---", *(_HEAD_OF_TEXTS if texts else _HEAD), "---", ""),
        *(f"# {Path(run.path).name}", ""),
        f"An embedding of {'texts' if texts else 'images'}, {model.dim} numbers to be compared by cosine, learned task "
        f"by task with tripletmas {__version__}:",
        f"model `{name}`, strategy `{strategy}`, data `{data}`, {len(classes)} classes.",
        *("", "## Scores", "", *_table(run, model.after_task), ""),
        *(f"## {'Texts' if texts else 'Images'}", "", _read(model), ""),
        *("## Use", "", *use),
    ]
    return "\n".join(lines) + "\n"


def _read(model: RunModel) -> str:
    """How samples become what the model is shown, in a sentence."""
    if isinstance(model.shown, Tokenizer):
        return f"At most {model.shown.max_length} tokens of a text are read, by the tokenizer in this folder."
    (height, width), normalised = model.shown.size, ""
    if model.mean is not None and model.deviation is not None:
        means = f"mean {list(model.mean)} and deviation {list(model.deviation)}"
        normalised = f"; the model itself normalises them by {means}"
    colours = "RGB" if model.shown.channels == 3 else "Grey"
    return (
        f"{colours}, {height} x {width} pixels, values in [0, 1], resized by {model.shown.interpolation}, the middle "
        f"{model.shown.crop:g} of each side{normalised}."
    )


def _table(run: RunDirectory, after: int) -> list[str]:
    """Of each task learned, the main metrics on the gallery of everything seen, as Markdown."""
    records = [record for record in run.records("task") if record["task"] <= after]
    scores = records[-1]["scores"]
    seen = {title: scores[place][metric] for (place, metric), title in _TITLES.items() if metric in scores[place]}
    columns = [[f"{value:.3f}" for value in values] for values in seen.values()]
    rows = zip((str(record["name"]) for record in records), *columns, strict=True)
    head = ["task", *seen]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


_TITLES = {
    (gallery, metric): metric + where
    for gallery, where in (("seen", ""), ("seen_stale", ", stored vectors"), ("task", ", own gallery"))
    for metric in ("recall@1", "MAP@R", "map")
}

_HEAD = (
    "library_name: tripletmas",
    "pipeline_tag: image-feature-extraction",
    "tags: [metric-learning, continual-learning, image-retrieval]",
)
_HEAD_OF_TEXTS = (
    "library_name: sentence-transformers",
    "pipeline_tag: sentence-similarity",
    "tags: [sentence-transformers, metric-learning, continual-learning]",
)
_USE_OF_TEXTS = (
    "```python",
    "from sentence_transformers import SentenceTransformer",
    "",
    'vectors = SentenceTransformer("FOLDER").encode(["a text"])',
    "```",
    "",
    "`tripletmas train --model sentence-transformers:FOLDER ...` goes on learning from it.",
)
_USE = (
    "```python",
    "import tripletmas as tm",
    "",
    'found = tm.from_pretrained("FOLDER")',
    "found.model     # a torch.nn.Module: images in [0, 1] (n, channels, height, width) -> (n, dim)",
    "found.prepared  # how an image file becomes such an image",
    "```",
    "",
    "`tripletmas train --model FOLDER ...` goes on learning from it.",
)
_USE_OF_CODE = (  # code of somebody's own is not in the folder, and nothing executes it
    "The network is made by `{name}`, which is not in this folder: make it by that, and load `model.safetensors`, or\n"
    "`tripletmas train --model {name} --model.weights FOLDER/model.safetensors ...`, which goes on learning from it."
)
