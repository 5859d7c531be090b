"""A run's model to take elsewhere: written as a folder that stands alone (`models.exported`), and loaded from one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tripletmas.basics.files import read_tensors
from tripletmas.basics.version import __version__
from tripletmas.basics.weights import load_state, weight_hash
from tripletmas.data.preparation import Preparation, height_and_width
from tripletmas.data.tasks import learned_classes
from tripletmas.models.exported import CONFIG, WEIGHTS, read_exported, write_exported
from tripletmas.models.making import is_built_in, make_model, without_start
from tripletmas.models.networks import embedding_dim
from tripletmas.models.text import save_encoder, text_encoder_of
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.experiment import config_of, load_trained
from tripletmas.runs.models import RunModel, load_model, normalisation_of


def save_pretrained(run: RunDirectory, folder: str | Path, *, after: int | None = None) -> RunModel:
    """Write the model that a run deploys after a task as a folder that stands alone, with a card of its scores.

    Args:
        after: the number of the task; None for the last that is done.

    Raises:
        ValueError: if that task is not done yet, or something is in the folder.
    """
    model, config = load_model(run, after=after, device="cpu"), config_of(run)
    experiment, number = load_trained(run, after, device="cpu")
    classes = learned_classes(experiment.stream[: number + 1])
    if encoder := text_encoder_of(model.model):
        save_encoder(encoder, Path(folder), _card_of_texts(run, config, model, classes))
        return model
    options = without_start(config["model"]["name"], config["model"])
    options.pop("lora", None)  # how it was trained, and nothing that it is
    card = _card(run, config, model, classes)
    write_exported(folder, model.model, options, model.prepared, classes=classes, card=card)
    return model


def from_pretrained(folder: str | Path) -> RunModel:
    """The model in a folder that `save_pretrained` wrote, in eval mode, with how images are prepared for it.

    Raises:
        ValueError: if there is no such folder, if its weights are damaged or another network's, or if the network is
            made by code of somebody's own, which is not executed here.
    """
    config = read_exported(folder)
    options, shown = dict(config["model"]), config["preparation"]
    name = options.pop("name")
    if not is_built_in(name):
        raise ValueError(
            f"{folder} needs the code {name!r}, which is not executed: make the network yourself, and load {WEIGHTS}"
        )
    file = Path(folder) / WEIGHTS
    try:
        prepared = Preparation(**{**shown, "size": height_and_width(shown["size"])})
        model = make_model(name, prepared.shape, options=options).eval()
    except (LookupError, TypeError) as error:
        raise ValueError(f"{Path(folder) / CONFIG} is damaged ({error}): export the model anew") from None
    state, _ = read_tensors(file, "export the model anew")
    load_state(model, state, str(file))
    mean, deviation = normalisation_of(options)
    loading = {"batch_size": 256, "num_workers": 0}
    dim = embedding_dim(model, prepared.shape)
    return RunModel(str(folder), 0, weight_hash(state), model, prepared, mean, deviation, dim, **loading)


def _card_of_texts(run: RunDirectory, config: Mapping[str, Any], model: RunModel, classes: list[str]) -> str:
    """The same of a model of texts."""
    strategy, data = config["strategy"]["name"], config["data"]["name"]
    lines = [
        "---",
        "library_name: sentence-transformers",
        "pipeline_tag: sentence-similarity",
        "tags: [sentence-transformers, metric-learning, continual-learning]",
        "---",
        "",
        f"# {Path(run.path).name}",
        "",
        f"An embedding of texts, {model.dim} numbers to be compared by cosine, learned task by task with tripletmas",
        f"{__version__}: model `{config['model']['name']}`, strategy `{strategy}`, data `{data}`.",
        f"{len(classes)} classes. At most {model.tokenizer.max_length} tokens of a text are read.",
        "",
        "## Scores",
        "",
        *_table(run, model.after_task),
        "",
        "## Use",
        "",
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        'vectors = SentenceTransformer("FOLDER").encode(["a text"])',
        "```",
        "",
        "`tripletmas train --model sentence-transformers:FOLDER ...` goes on learning from it.",
    ]
    return "\n".join(lines) + "\n"


def _card(run: RunDirectory, config: Mapping[str, Any], model: RunModel, classes: list[str]) -> str:
    """The text of a model card: what it is, how good, how images are prepared, how it is used."""
    height, width = model.prepared.size
    name = config["model"]["name"]
    name = name if (alone := is_built_in(name)) else Path(name).name  # of a file, not where it lies
    strategy, data = config["strategy"]["name"], config["data"]["name"]
    normalised = "" if model.mean is None else f", normalised by mean {list(model.mean)} and deviation "
    normalised += "" if model.deviation is None else f"{list(model.deviation)} (the model does that itself)"
    lines = [
        "---",
        "library_name: tripletmas",
        "pipeline_tag: image-feature-extraction",
        "tags: [metric-learning, continual-learning, image-retrieval]",
        "---",
        "",
        f"# {Path(run.path).name}",
        "",
        f"An embedding of images, {model.dim} numbers to be compared by cosine, learned task by task with tripletmas",
        f"{__version__}: model `{name}`, strategy `{strategy}`, data `{data}`.",
        f"{len(classes)} classes.",
        "",
        "## Scores",
        "",
        *_table(run, model.after_task),
        "",
        "## Images",
        "",
        f"RGB, values in [0, 1], {height} x {width}" if model.prepared.channels == 3 else f"Grey, {height} x {width}",
        f"pixels, {model.prepared.interpolation}, the middle {model.prepared.crop:g} of each side{normalised}.",
        "",
        "## Use",
        "",
        *(_USE if alone else [_USE_OF_CODE.format(name=name)]),
    ]
    return "\n".join(lines) + "\n"


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
