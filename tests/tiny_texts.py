"""A tiny sentence encoder in a folder, as Sentence Transformers saves one, and texts in its few words."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

WORDS = {  # class -> words that its texts are made of
    "card": ("card", "lost", "stolen", "pin", "block"),
    "parcel": ("parcel", "where", "late", "arrive", "sent"),
    "refund": ("refund", "money", "back", "return", "paid"),
    "login": ("login", "password", "forgot", "account", "open"),
}
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PIECES = ("is", "my", "the", "i", "?", ".", "##s", "##ed")


def write_encoder(
    folder: Path,
    *,
    width: int = 16,
    max_length: int = 12,
    modules: Sequence[str] = ("Transformer", "Pooling", "Normalize"),
    pad_token: bool = True,
    seed: int = 0,
) -> Path:
    """A BERT of random weights, `width` wide, two layers deep; the words of WORDS are in its vocabulary."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = [*_SPECIAL, *_PIECES, *(word for words in WORDS.values() for word in words)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=max_length + 4,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=max_length + 4).save_pretrained(folder)
    if not pad_token:
        forget_padding(folder)
    prefix = "sentence_transformers.models."
    of = [
        {"idx": number, "name": str(number), "path": f"{number}_{name}" if number else "", "type": f"{prefix}{name}"}
        for number, name in enumerate(modules)
    ]
    _write(folder / "modules.json", of)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    for module in of[1:]:
        (folder / module["path"]).mkdir(exist_ok=True)
        if module["type"].endswith("Pooling"):
            _write(folder / module["path"] / "config.json", pooling)
    return folder


def forget_padding(folder: Path) -> None:
    """Take the padding token out of a tokenizer's files."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        if path.exists():
            content = json.loads(path.read_text())
            content["pad_token"] = None
            _write(path, content)


def sentences(label: str, count: int, *, first: int = 0) -> list[str]:
    """Different texts of a class, each of two or more of its words and others."""
    words = WORDS[label]
    found = []
    for number in range(first, first + count):
        one, other = words[number % 5], words[(number // 5 + number + 1) % 5]
        found.append(
            f"{'where is' if number % 3 else 'the'} my {one} {'is' * (number % 2)} {other} {'?' * (number // 25)}"
        )
    return found


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """A CSV file with the columns of the first row."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows_of(count: int = 10, *, classes: Sequence[str] = tuple(WORDS)) -> list[dict[str, object]]:
    """Rows with the columns question and topic: so many of each class."""
    return [{"question": text, "topic": label} for label in classes for text in sentences(label, count)]


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))
