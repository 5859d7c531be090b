"""Readers of other people's files, given damaged ones: each is read, or refused in one sentence that names it.

By default a few hundred files a reader; under `long` as many as the environment variable TRIPLETMAS_FUZZ says, 20,000
if it is not set.
"""

from __future__ import annotations

import gzip
import io
import os
import resource
import signal
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from tripletmas.basics.yaml_files import read_mapping
from tripletmas.data.folders import csv, folder
from tripletmas.data.images import ImageFiles, find_images
from tripletmas.data.preparation import Preparation
from tripletmas.data.text_tables import jsonl
from tripletmas.objectives.facts.listed import facts
from tripletmas.objectives.facts.words import read_word_vectors
from tripletmas.runs.configuration import parse

SECONDS = 5  # more than this is a hang
MEMORY = 2 * 2**30  # bytes that a reader may add to what the process takes


@dataclass(frozen=True)
class Reader:
    """How a file is read, what whole ones look like, and what its format gives meaning to."""

    file: str
    read: Callable[[Path], object]
    seeds: Sequence[bytes]
    tokens: Sequence[bytes] = (b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0")
    named: bool = True


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
READERS = {
    "image": Reader("a.img.png", decode, IMAGES),
    "zip": Reader("a.zip", unpack, [packed(a__0=PNG, b__1=PNG, b__2=encoded("JPEG"))]),
    "csv": Reader("a.csv", lambda path: csv(path=str(path), size=4), [ROWS], TABLE),
    "texts": Reader("a.csv", lambda path: csv(path=str(path), text="text"), [TEXTS], TABLE),
    "pairs": Reader("a.csv", lambda path: csv(path=str(path), text="text", positive="label"), [TEXTS], TABLE),
    "jsonl": Reader("a.jsonl", lambda path: jsonl(path=str(path)), [LINES], (*TABLE, b"{", b"null", b"[" * 5000)),
    "facts": Reader("a.csv", lambda path: facts(csv=str(path), size=4), [FACTS], (*TABLE, b"*", b"circle")),
    "words": Reader("a.txt", read_word_vectors, [WORDS, b"3 3\n" + WORDS, BINARY], (b" ", b"\n", b"nan", b"9" * 5000)),
    "words.gz": Reader("a.gz", read_word_vectors, [gzip.compress(each, mtime=0) for each in (WORDS, BINARY)]),
    "yaml": Reader("a.yaml", read_mapping, [YAML], MARKUP, named=False),
    "configuration": Reader("b.yaml", lambda path: parse(["--config", str(path)]), [YAML], MARKUP, named=False),
}


@st.composite
def damaged(draw: st.DrawFn, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    """A whole file with a few changes, most of them where a header is."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(content)) | st.integers(0, min(64, len(content))))
        match draw(st.sampled_from(("change", "insert", "token", "cut", "remove", "repeat"))):
            case "change":
                content[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "insert":
                content[at:at] = draw(st.binary(max_size=8))
            case "token":
                content[at:at] = draw(st.sampled_from(tokens))
            case "cut":
                del content[at:]
            case "remove":
                del content[at : at + draw(st.integers(1, 16))]
            case "repeat":
                content[at:at] = content[max(0, at - draw(st.integers(1, 40))) : at]
    return bytes(content)


class Hung(BaseException):
    """No `except Exception` takes it for an error of the file."""


def hung(*_: object) -> None:
    raise Hung(f"not read within {SECONDS} s")


def fuzz(reader: Reader, place: Path, count: int) -> None:
    path = place / reader.file
    for name in "abc":
        Image.new("L", (6, 6), 99).save(place / f"{name}.png")

    @settings(
        max_examples=count,
        database=None,
        suppress_health_check=[*HealthCheck],  # pyright: ignore[reportArgumentType]
        phases=[Phase.generate, Phase.shrink],
    )
    @given(content=damaged(reader.seeds, reader.tokens))
    def read(content: bytes) -> None:
        path.write_bytes(content)
        message = ""
        signal.alarm(SECONDS)
        try:
            reader.read(path)
        except ValueError as error:
            message = str(error) or "empty\n"
        finally:
            signal.alarm(0)
        assert not message or place.name in message or not reader.named, f"names no file: {message}"
        assert "\n" not in message

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, hung)
    try:
        read()
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it reads all the same
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused(name, tmp_path):
    fuzz(READERS[name], tmp_path, 40 if name == "configuration" else 200)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files_are_read_or_refused(name, tmp_path):
    fuzz(READERS[name], tmp_path, int(os.environ.get("TRIPLETMAS_FUZZ", "20000")))
