"""Vectors of words: read from a file of learned ones, or made of a word's letters where there is none.

`dim` is the length of a vector. Learned vectors have the length and direction that their file gives them.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
from torch import Tensor

NGRAMS = (3, 4, 5)  # letters in an n-gram, boundary markers included
WHOLE_WORD = 0.5  # weight of the word itself, where all of its n-grams together weigh 1
HEADER = re.compile(rb"\d+ \d+ ?\r?\n")  # of a word2vec file: how many words, how many values each
CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # no text has these; four bytes of a float often do
NUMBER = re.compile(r"[-+]?\d*\.?\d+([eE][-+]?\d+)?")


class WordVectors(Protocol):
    """What gives words vectors."""

    @property
    def name(self) -> str:
        """What the vectors are, for configurations and reports."""
        ...

    @property
    def dim(self) -> int: ...

    def vector(self, word: str) -> Tensor | None:
        """float32 (dim,), or None for an unknown word."""
        ...


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
    return _HashedWords(dim, seed)


def read_word_vectors(path: str | Path) -> WordVectors:
    """Learned vectors of a file: GloVe's text, word2vec's text or binary format, or KeyedVectors that gensim saved.

    The format is told from the content; a name that ends in `.gz` says that the file is compressed. All but text needs
    gensim. Text and binary files are held in memory, and text is slow to read. KeyedVectors are memory-mapped where
    they are large and not compressed, so read a large file once with gensim and save it:
    `KeyedVectors.load_word2vec_format("words.txt").save("words.kv")`, with `no_header=True` for GloVe's. KeyedVectors
    are a pickle, which can run any code when it is read: read none that you do not trust.

    A word is looked up as it is, then in lower case, then capitalised. Of a word given twice, the first counts.

    Raises:
        ValueError: where gensim is needed and not installed; for a file that is not there, is empty, is cut short, is
            of none of these formats, has a line with another number of values than the others, or has a value that is
            not finite (of KeyedVectors this shows when the word is looked up, as they are not read in full).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file of word vectors {path}")
    try:
        key_to_index, vectors = _load(path)
    except Exception as error:  # a pickle that is damaged raises anything
        raise ValueError(f"{path} cannot be read as word vectors: {error or type(error).__name__}") from error
    return _FileWords(path, key_to_index, vectors)


def make_words(*, words: str | None = None, word_dim: int = 64, word_seed: int = 0) -> WordVectors:
    """The word vectors that options name.

    Args:
        words: a file of word vectors, in GloVe's or word2vec's text or binary format, or as gensim saves them. null:
            vectors made of each word's letters, which know nothing of meaning.
        word_dim: without a file, the length of a vector.
        word_seed: without a file, draws the vectors.
    """
    return hashed_words(word_dim, seed=word_seed) if words is None else read_word_vectors(words)


@dataclass(frozen=True)
class _HashedWords:
    dim: int
    seed: int

    @property
    def name(self) -> str:
        return f"hashed character n-grams, dim {self.dim}, seed {self.seed}"

    def vector(self, word: str) -> Tensor:
        if not word:
            raise ValueError("a word must have letters to have a vector, got ''")
        marked = f"<{word}>"
        ngrams = {marked[at : at + size] for size in NGRAMS for at in range(len(marked) - size + 1)} - {marked}
        total = WHOLE_WORD * self._signs("word", marked)
        if ngrams:  # a word of one letter has none
            total += sum(self._signs("n-gram", ngram) for ngram in ngrams) / math.sqrt(len(ngrams))
        return torch.from_numpy((total / math.sqrt(math.fsum(total * total))).astype(np.float32))

    def _signs(self, kind: str, text: str) -> np.ndarray:
        digest = hashlib.shake_256(f"{self.seed} {kind} {text}".encode()).digest(math.ceil(self.dim / 8))
        return 2.0 * np.unpackbits(np.frombuffer(digest, dtype=np.uint8), count=self.dim) - 1


@dataclass(frozen=True, eq=False)
class _FileWords:
    path: Path
    key_to_index: dict[str, int] = field(repr=False)
    vectors: np.ndarray = field(repr=False)  # (words, dim)

    @property
    def name(self) -> str:
        return f"{self.path.name}, {len(self.key_to_index)} words, dim {self.dim}"

    @property
    def dim(self) -> int:
        return self.vectors.shape[1]

    def vector(self, word: str) -> Tensor | None:
        for spelled in (word, word.lower(), word.capitalize()):
            if spelled in self.key_to_index:
                values = np.array(self.vectors[self.key_to_index[spelled]], dtype=np.float32)
                if not np.isfinite(values).all():
                    raise ValueError(f"{self.path}: the vector of {spelled!r} has values that are not finite")
                return torch.from_numpy(values)
        return None


def _load(path: Path) -> tuple[dict[str, int], np.ndarray]:
    """The row of each word, and the rows. Errors do not name the file."""
    with _open(path) as file:
        start = file.read(1 << 16)
    if not start:
        raise ValueError("it is empty")
    match = HEADER.match(start)
    header = match.group() if match else b""
    pickled = start[:1] == b"\x80"  # no text starts so
    if not pickled and (not header or _is_text(start[len(header) :])):
        return _load_text(path, header)
    try:
        from gensim.models import KeyedVectors  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError('its format needs gensim: pip install "tripletmas[words]"') from None
    if pickled:
        saved = KeyedVectors.load(str(path), mmap=None if path.suffix == ".gz" else "r")
        if not isinstance(saved, KeyedVectors):
            raise ValueError(f"it holds a {type(saved).__name__}, not KeyedVectors: of a gensim model, save its `wv`")
        return saved.key_to_index, saved.vectors  # pyright: ignore[reportReturnType]
    count, dim = _sizes(header)
    if path.suffix != ".gz" and path.stat().st_size < len(header) + count * (4 * dim + 1):  # before gensim reserves it
        raise ValueError(f"it is cut short: too few bytes for the {count} words of {dim} values that its header says")
    read = KeyedVectors.load_word2vec_format(str(path), binary=True)
    # extremes are nan where a value is, and take little memory
    finite = np.isfinite(read.vectors.min(axis=1)) & np.isfinite(read.vectors.max(axis=1))
    if not finite.all():
        raise ValueError(f"the vector of {read.index_to_key[int(finite.argmin())]!r} has values that are not finite")
    return read.key_to_index, read.vectors  # pyright: ignore[reportReturnType]


def _load_text(path: Path, header: bytes) -> tuple[dict[str, int], np.ndarray]:
    """Lines of a word and its values. gensim is not asked: it names no lines, and refuses words with a space inside."""
    key_to_index: dict[str, int] = {}
    values = bytearray()
    with _open(path) as file:
        count, dim = _sizes(file.readline()) if header else (None, 0)
        lines = 0
        for lines, line in enumerate(file, start=1):
            number = lines + (header != b"")
            parts = line.rstrip().decode().split(" ")
            dim = dim or len(parts) - 1
            extra = len(parts) - 1 - dim  # words with a space inside, as GloVe's 840B has: "at name@domain.com"
            if not dim or extra < 0 or (extra and NUMBER.fullmatch(parts[extra])):
                raise ValueError(f"line {number} has {len(parts) - 1} values, expected {dim or 'some'}")
            try:
                row = np.array([float(part) for part in parts[-dim:]], dtype=np.float64)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            if not (np.abs(row) <= np.finfo(np.float32).max).all():
                raise ValueError(f"line {number} has values that are not finite in float32")
            if key_to_index.setdefault(" ".join(parts[:-dim]), len(key_to_index)) * 4 * dim == len(values):
                values += row.astype(np.float32).tobytes()
    if count is not None and lines != count:
        cut = "it is cut short: " if lines < count else ""
        raise ValueError(f"{cut}its header says {count} words, but it has {lines}")
    return key_to_index, np.frombuffer(values, dtype=np.float32).reshape(-1, dim)


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # pyright: ignore[reportReturnType]


def _is_text(content: bytes) -> bool:
    """Whether the first bytes of something are UTF-8; a character may be cut at the end."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(content)
    except UnicodeDecodeError:
        return False
    return CONTROL.search(content) is None


def _sizes(header: bytes) -> tuple[int, int]:
    count, dim = (int(number) for number in header.split())
    if not count or not dim:
        raise ValueError(f"its header says {count} words of {dim} values")
    return count, dim
