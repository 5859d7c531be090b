"""Readers of other people's files, given damaged ones: each is read, or refused in one sentence that names it.

By default a few hundred files a reader; under `long` as many as `fuzzing.asked_for` says.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from fuzzing import Reader, asked_for, bytes_damaged, fuzz, fuzz_quickly, json_damaged, lines_damaged
from PIL import Image

from tripletmas.basics.yaml_files import read_mapping
from tripletmas.data.folders import csv, folder
from tripletmas.data.images import ImageFiles, find_images
from tripletmas.data.preparation import Preparation
from tripletmas.data.text_tables import jsonl
from tripletmas.objectives.facts.listed import facts
from tripletmas.objectives.facts.words import read_word_vectors
from tripletmas.runs.configuration import parse


def encoded(kind: str, mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def deep(kind: str, dtype: type) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((5, 5), 200, dtype)).save(stream, kind)
    return stream.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded("JPEG", exif=exif)


def packed(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/") + ".png", content)
    return stream.getvalue()


def header_damaged(chosen: random.Random, whole: bytes) -> bytes:
    """Numbers of one, two or four bytes in the first hundred say something else: sizes, depths, offsets, lengths."""
    content = bytearray(whole)
    for _ in range(chosen.randint(1, 3)):
        size = chosen.choice((1, 2, 4))
        at = chosen.randint(0, min(100, len(content) - size))
        value = chosen.choice(
            (0, 1, 2, 7, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, chosen.randint(0, 2**32))
        )
        content[at : at + size] = (value % 256**size).to_bytes(size, chosen.choice(("big", "little")))
    if content[:4] == b"\x89PNG" and chosen.randint(0, 1):  # else that checksum alone is seen
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def inside_gzip(chosen: random.Random, whole: bytes) -> bytes:
    return gzip.compress(WORDED(chosen, gzip.decompress(whole)), 1, mtime=0)


def yaml_damaged(chosen: random.Random, whole: bytes) -> bytes:
    """JSON is YAML."""
    content = {
        "strategy": {"name": "mas", "strength": 0.3},
        "data": {"name": "digits", "tasks": [2, 2]},
        "seed": 3,
        "training": {"lr": 1e-3, "epochs": 2},
        "model": {"name": "mlp", "hidden": [8]},
        "loss": {"name": "triplet"},
    }
    return json_damaged(chosen, json.dumps(content).encode())


def decode(path: Path) -> None:
    images = ImageFiles(path.parent, [path.name], Preparation((4, 4), 3))
    images.check(0)
    images[0]


def unpack(path: Path) -> None:
    images = ImageFiles(path, find_images(path), Preparation((4, 4), 1))
    for number in range(len(images)):
        images[number]
    folder(root=str(path), size=4)


PNG = encoded("PNG")
IMAGES = [
    *(PNG, encoded("PNG", "P"), encoded("PNG", "LA"), encoded("PNG", "1"), encoded("PNG", "L", transparency=3)),
    *(encoded("JPEG"), turned(), encoded("JPEG", "CMYK"), encoded("GIF"), encoded("BMP"), encoded("WEBP")),
    *(encoded("PPM"), b"P5 2 2 4095\n" + bytes(range(8)), encoded("TIFF"), deep("TIFF", np.float32)),
    *(deep("PNG", np.uint16), deep("TIFF", np.int32), encoded("TIFF", compression="tiff_lzw")),
]
ROWS = b"path,label,task,split\na.png,x,t,train\nb.png,y,t,train\na.png,x,t,gallery\nc.png,x,t,test\n"
TEXTS = b'text,label,split\n"a, b\nand c",x,train\nd,y,train\ne,x,test\nf,y,test\n'
LINES = b'{"text": "a", "label": "x"}\n{"text": "b", "label": 2, "split": "train"}\n{"text": "c", "label": "x"}\n'
FACTS = b'image,subject,predicate,object,split\na.png,circle,,,train\nb.png,circle,"left of",square,test\n'
WORDS = b"circle 0.1 -2e-3 3\nleft of 1 2 3\nsquare 4 5 6\n"
BINARY = b"2 2\ncircle " + struct.pack("<2f", 1, 2) + b"\nof " + struct.pack("<2f", 3, 4) + b"\n"
YAML = (
    b"strategy: {name: mas, strength: 0.3}\ndata:\n  name: digits\n  tasks: &t [2, 2]\ntraining: {lr: 1e-3}\nseed: 3\n"
)
MARKUP = (b"*t", b"&u ", b"- ", b": ", b"{", b"}", b"[", b"]", b"!!set ", b"!!binary ", b"<<: ", b"? ", b"|\n", b"'")
TABLE = (b",", b'"', b"\n", b"\r", b'""', b" ", b"\0", b"\xff", b"\xef\xbb\xbf", b"../", b"/", b"train", b"x" * 200_000)
LETTERS = bytes_damaged(*TABLE, b"{", b"null", b"[" * 5000)
CELLS, WORDED = bytes_damaged(*TABLE), bytes_damaged(b" ", b"\n", b"nan", b"9" * 5000)
READERS = {
    "image": Reader("a.img.png", decode, IMAGES, [bytes_damaged(), header_damaged]),
    "zip": Reader("a.zip", unpack, [packed(a__0=PNG, b__1=PNG, b__2=encoded("JPEG"))], [bytes_damaged()]),
    "csv": Reader("a.csv", lambda path: csv(path=str(path), size=4), [ROWS], [CELLS]),
    "texts": Reader("a.csv", lambda path: csv(path=str(path), text="text"), [TEXTS], [CELLS]),
    "pairs": Reader("a.csv", lambda path: csv(path=str(path), text="text", positive="label"), [TEXTS], [CELLS]),
    "jsonl": Reader("a.jsonl", lambda path: jsonl(path=str(path)), [LINES], [LETTERS, lines_damaged]),
    "facts": Reader(
        "a.csv", lambda path: facts(csv=str(path), size=4), [FACTS], [bytes_damaged(*TABLE, b"*", b"circle")]
    ),
    "words": Reader("a.txt", read_word_vectors, [WORDS, b"3 3\n" + WORDS, BINARY], [WORDED]),
    "words.gz": Reader(
        "a.gz",
        read_word_vectors,
        [gzip.compress(each, mtime=0) for each in (WORDS, BINARY)],
        [bytes_damaged(), inside_gzip],
    ),
    "yaml": Reader("a.yaml", read_mapping, [YAML], [bytes_damaged(*MARKUP)], named=False),
    "configuration": Reader(
        "b.yaml",
        lambda path: parse(["--config", str(path)]),
        [YAML],
        [bytes_damaged(*MARKUP), yaml_damaged],
        named=False,
    ),
}


def place_of(folder: Path) -> Path:
    """With images that tables may name."""
    for name in "abc":
        Image.new("L", (6, 6), 99).save(folder / f"{name}.png")
    return folder


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it reads all the same
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused(name, tmp_path):
    fuzz(READERS[name], place_of(tmp_path), 40 if name == "configuration" else 200)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files_are_read_or_refused(name, tmp_path):
    fuzz_quickly(READERS[name], place_of(tmp_path), asked_for())
