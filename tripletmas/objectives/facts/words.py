"""Vectors of words: read from a file of learned ones, or made of a word's letters where there is none.

`dim` is the length of a vector. Learned vectors have the length and direction that their file gives them.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

NGRAMS = (3, 4, 5)  # letters in an n-gram, boundary markers included
WHOLE_WORD = 0.5  # weight of the word itself, where all of its n-grams together weigh 1
HEADER = re.compile(rb"\d+ \d+ ?\r?\n")  # of a word2vec file: how many words, how many values each
CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # no text has these; four bytes of a float often do
LONGEST_LINE = 2**20  # bytes of a word and its values as text
LONGEST_WORD = 2**12  # bytes of a word in a binary file, with what separates it
NUMBER = re.compile(r"[-+]?\d*\.?\d+([eE][-+]?\d+)?")


@dataclass(frozen=True)
class WordVectors:
    """What gives words vectors.

    Attributes:
        name: what they are, for configurations and reports.
        vector: word -> float32 (dim,), or None for an unknown word.
    """

    name: str
    dim: int
    vector: Callable[[str], Tensor | None] = field(repr=False)


def phrase_vector(phrase: str, words: WordVectors) -> tuple[Tensor | None, tuple[str, ...]]:
    """The mean of the vectors of a phrase's known words, and its unknown words.

    The mean is not scaled. It is None where no word is known, and for a phrase without words.
    """
    found = [(word, words.vector(word)) for word in phrase.split()]
    known = [vector for _, vector in found if vector is not None]
    unknown = tuple(word for word, vector in found if vector is None)
    return (torch.stack(known).mean(dim=0) if known else None), unknown


def hashed_words(dim: int = 64, *, seed: int = 0) -> WordVectors:
    """Vectors of unit length that follow from a word's letters: close for words that share letters, no more.

    A word is the scaled sum of a vector of random signs for each of its distinct n-grams of 3 to 5 letters, `<` and `>`
    around it counted as letters, and one for the word itself. They know nothing of meaning: "square" is close to
    "squares" and no closer to "rectangle" than to "dog". Cosines of words that share no n-gram are spread around 0 with
    standard deviation dim ** -0.5, 0.125 for 64. The signs are bits of a hash, so a word's vector depends on nothing
    but its letters, `dim` and `seed`: not on the process, the platform, or the version of a generator.

    Source: n-grams as in Bojanowski et al., Enriching Word Vectors with Subword Information, TACL 2017, which learns
    their vectors; here they are random.

    >>> square, squares = (hashed_words().vector(word) for word in ("square", "squares"))
    >>> bool(square @ squares > 0.4)
    True
    """
    if dim < 4:
        raise ValueError(f"dim must be >= 4 for hashed words to differ, got {dim}")
    return WordVectors(f"hashed character n-grams, dim {dim}, seed {seed}", dim, partial(_hashed, dim, seed))


def read_word_vectors(path: str | Path) -> WordVectors:
    """Learned vectors of a file: GloVe's text, or word2vec's text or binary format.

    The format is told from the content; a name that ends in `.gz` says that the file is compressed. All is held in
    memory, and text is slow to read. What gensim saves (`.kv`, `.model`) is a pickle, which can run any code when it is
    read, and is refused.

    A word is looked up as it is, then in lower case, then capitalised. Of a word given twice, the first counts.

    Raises:
        ValueError: for a file that is not there, is empty, is cut short, is of none of these formats, has a line with
            another number of values than the others, or has a value that is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file of word vectors {path}")
    try:
        return _read(path)
    except (ValueError, OSError, EOFError, zlib.error) as error:  # the last two of a damaged .gz
        raise ValueError(f"{path} cannot be read as word vectors: {error}") from error


def make_words(*, words: str | None = None, word_dim: int = 64, word_seed: int = 0) -> WordVectors:
    """The word vectors that options name.

    Args:
        words: a file of word vectors, in GloVe's text or in word2vec's text or binary format. null: vectors made of
            each word's letters, which know nothing of meaning.
        word_dim: without a file, the length of a vector.
        word_seed: without a file, draws the vectors.
    """
    return hashed_words(word_dim, seed=word_seed) if words is None else read_word_vectors(words)


def _hashed(dim: int, seed: int, word: str) -> Tensor:
    if not word:
        raise ValueError("a word must have letters to have a vector, got ''")

    def signs(kind: str, text: str) -> np.ndarray:
        digest = hashlib.shake_256(f"{seed} {kind} {text}".encode()).digest(math.ceil(dim / 8))
        return 2.0 * np.unpackbits(np.frombuffer(digest, dtype=np.uint8), count=dim) - 1

    marked = f"<{word}>"
    ngrams = {marked[at : at + size] for size in NGRAMS for at in range(len(marked) - size + 1)} - {marked}
    total = WHOLE_WORD * signs("word", marked)
    if ngrams:  # a word of one letter has none
        total += sum(signs("n-gram", ngram) for ngram in ngrams) / math.sqrt(len(ngrams))
    return torch.from_numpy((total / math.sqrt(math.fsum(total * total))).astype(np.float32))


def _of_file(name: str, dim: int, content: bytes | bytearray, place: dict[str, int]) -> WordVectors:
    """`place` says where in the content the float32 values of each word begin."""

    def vector(word: str) -> Tensor | None:
        for spelled in (word, word.lower(), word.capitalize()):
            if spelled in place:
                return torch.from_numpy(np.frombuffer(content, "<f4", dim, place[spelled]).astype(np.float32))
        return None

    return WordVectors(f"{name}, {len(place)} words, dim {dim}", dim, vector)


def _read(path: Path) -> WordVectors:
    """Errors do not name the file."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        start = file.read(1 << 16)
        if not start:
            raise ValueError("it is empty")
        if start[:1] == b"\x80":  # no text starts so
            raise ValueError(
                "it is a pickle, as gensim saves them, which can run any code when it is read; if you trust it, write "
                'text with gensim: KeyedVectors.load("words.kv").save_word2vec_format("words.txt"), of a model its `wv`'
            )
        header = HEADER.match(start)
        file.seek(header.end() if header else 0)
        if header is None:
            return _read_text(path.name, _lines(file))
        count, dim = (int(number) for number in header.group().split())
        if not count or not dim:
            raise ValueError(f"its header says {count} words of {dim} values")
        if _is_text(start[header.end() :]):
            return _read_text(path.name, _lines(file), count, dim)
        return _read_binary(path.name, _start_of(file, count * (4 * dim + LONGEST_WORD)), count, dim)


def _start_of(file: BufferedIOBase, most: int) -> bytearray:
    """So many bytes, or as many as there are: whatever a compressed file goes on with is not unpacked."""
    content = bytearray()
    while block := file.read(min(most - len(content), 2**20)):
        content += block
    return content


def _lines(file: BufferedIOBase) -> Iterator[bytes]:
    """The lines of a file, which may be compressed and unpack to anything."""
    for line in iter(lambda: file.readline(LONGEST_LINE + 1), b""):
        if len(line) > LONGEST_LINE:
            raise ValueError(f"it has a line of more than {LONGEST_LINE:,} bytes")
        yield line


def _read_binary(name: str, content: bytearray, count: int, dim: int) -> WordVectors:
    """A word, a space, its values in little-endian float32, and with most writers a line end; and so on."""
    place: dict[str, int] = {}
    end = 0
    for number in range(count):
        space = content.find(b" ", end)
        word, end = content[end:space].lstrip(b"\n"), space + 1 + 4 * dim
        if space < 0 or end > len(content):
            raise ValueError(f"it is cut short: its header says {count} words of {dim} values, but it has {number}")
        if not _fits_float32(np.frombuffer(content, "<f4", dim, space + 1)):
            raise ValueError(f"the vector of {word.decode()!r} has values that are not finite")
        place.setdefault(word.decode(), space + 1)
    return _of_file(name, dim, content, place)


def _read_text(name: str, lines: Iterable[bytes], count: int | None = None, dim: int = 0) -> WordVectors:
    """Lines of a word and its values, after the header if there was one."""
    place: dict[str, int] = {}
    content = bytearray()
    number = 0
    for number, line in enumerate(lines, start=1):
        try:
            word, row = _parsed(line.rstrip().decode().split(" "), dim)
        except ValueError as error:
            raise ValueError(f"line {number + (count is not None)}: {error}") from None
        dim = len(row)
        if place.setdefault(word, len(content)) == len(content):
            content += row.astype("<f4").tobytes()
    if count not in (None, number):
        raise ValueError(f"{'it is cut short: ' * (number < count)}its header says {count} words, but it has {number}")
    return _of_file(name, dim, content, place)


def _parsed(parts: list[str], dim: int) -> tuple[str, np.ndarray]:
    """The word and the values of a line; 0 where `dim` is not yet known."""
    dim = dim or len(parts) - 1
    more = len(parts) - 1 - dim  # words with a space inside, as GloVe's 840B has: "at name@domain.com"
    if not dim or more < 0 or (more and NUMBER.fullmatch(parts[more])):
        raise ValueError(f"{len(parts) - 1} values, expected {dim or 'some'}")
    row = np.array([float(part) for part in parts[-dim:]])
    if not _fits_float32(row):
        raise ValueError("values that are not finite in float32")
    return " ".join(parts[:-dim]), row


def _fits_float32(values: np.ndarray) -> bool:
    return bool((np.abs(values) <= np.finfo(np.float32).max).all())


def _is_text(content: bytes) -> bool:
    """Whether the first bytes of something are UTF-8; a character may be cut at the end."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(content)
    except UnicodeDecodeError:
        return False
    return CONTROL.search(content) is None
