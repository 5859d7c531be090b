"""Vectors of words, of their letters and of files in each format."""

from __future__ import annotations

import gzip
import hashlib
import math
import pickle
import struct
from itertools import combinations
from pathlib import Path

import pytest
import torch

from tripletmas.objectives.facts.words import hashed_words, phrase_vector, read_word_vectors

ROWS = {"left": (1.0, -2.5), "of": (0.25, 3.0), "Paris": (-1.0, 0.5)}
LINES = "".join(f"{word} {x} {y}\n" for word, (x, y) in ROWS.items())
BINARY = b"3 2\n" + b"".join(word.encode() + b" " + struct.pack("<2f", *row) + b"\n" for word, row in ROWS.items())


def written(tmp_path: Path, content: str | bytes, name: str = "words.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


class Fixed:
    """Two words, of which no vector has unit length."""

    name, dim = "fixed", 2

    def vector(self, word):
        return {"left": torch.tensor([2.0, 0.0]), "of": torch.tensor([0.0, 4.0])}.get(word)


def test_hashed_words_have_unit_length_and_a_name_that_says_what_they_are():
    words = hashed_words(64, seed=3)
    assert words.name == "hashed character n-grams, dim 64, seed 3"
    assert words.dim == 64
    for word in ("a", "on", "square", "straße", "x" * 500):
        vector = words.vector(word)
        assert vector is not None
        assert vector.dtype == torch.float32
        assert vector.shape == (64,)
        assert float(vector.norm()) == pytest.approx(1, abs=1e-6)


def test_the_cosine_of_two_words_follows_from_the_n_grams_they_share():
    # "<square>" has 6 + 5 + 4 n-grams of 3, 4 and 5 letters, "<squares>" 7 + 6 + 5; they share those of "<square",
    # 5 + 4 + 3. N-grams together weigh 1 and the word itself 0.5, so a vector's squared length is 1.25 before scaling.
    words = hashed_words(1 << 16)
    expected = 12 / (15 * 18) ** 0.5 / 1.25
    assert float(words.vector("square") @ words.vector("squares")) == pytest.approx(expected, abs=0.01)
    assert float(words.vector("square") @ words.vector("dog")) == pytest.approx(0, abs=0.01)
    assert float(words.vector("abc") @ words.vector("cba")) == pytest.approx(0, abs=0.01)


def test_words_that_share_letters_are_close_and_others_far():
    words = hashed_words()
    for one, other in (("square", "squares"), ("circle", "circles"), ("yellow", "yellowish")):
        assert float(words.vector(one) @ words.vector(other)) > 0.3
    far = ["circle", "dog", "yellow", "left", "holding", "under", "person", "bike", "guitar", "tree", "jump", "on"]
    cosines = torch.stack([words.vector(a) @ words.vector(b) for a, b in combinations(far, 2)]).abs()
    # 66 pairs of standard deviation 1/8: 0.3 is 2.4 of them, so 1.6 % lie beyond, and 5 % would be far too many
    assert float((cosines < 0.3).float().mean()) > 0.95


def test_hashed_words_depend_on_the_word_the_seed_and_nothing_else():
    words = hashed_words(16)
    first = words.vector("square")
    words.vector("circle")
    torch.manual_seed(5)
    assert torch.equal(words.vector("square"), first)
    assert not torch.equal(hashed_words(16, seed=1).vector("square"), first)


def test_a_hashed_word_by_its_definition():
    """The signs are bits of a hash, on any machine; the n-grams of "<ab>" are "<ab" and "ab>"."""

    def signs(text: str) -> list[int]:
        digest = hashlib.shake_256(f"3 {text}".encode()).digest(2)
        return [1 if byte >> bit & 1 else -1 for byte in digest for bit in range(7, -1, -1)]

    parts = zip(signs("word <ab>"), signs("n-gram <ab"), signs("n-gram ab>"), strict=True)
    raw = [0.5 * whole + (first + last) / math.sqrt(2) for whole, first, last in parts]
    expected = [value / math.hypot(*raw) for value in raw]
    assert hashed_words(16, seed=3).vector("ab").tolist() == pytest.approx(expected, rel=1e-6)


def test_hashed_words_refuse_an_empty_word_and_too_few_values():
    with pytest.raises(ValueError, match="must have letters"):
        hashed_words().vector("")
    with pytest.raises(ValueError, match=r"dim must be >= 4 .* got 3"):
        hashed_words(3)


def test_a_phrase_is_the_mean_of_its_known_words():
    vector, unknown = phrase_vector("left of", Fixed())
    assert vector.tolist() == [1, 2]
    assert unknown == ()
    vector, unknown = phrase_vector("far left xyz", Fixed())
    assert vector.tolist() == [2, 0]
    assert unknown == ("far", "xyz")
    assert phrase_vector("xyz", Fixed()) == (None, ("xyz",))
    assert phrase_vector("", Fixed()) == (None, ())


FORMATS = {
    "glove.txt": LINES,
    "word2vec.txt": "3 2\n" + LINES,
    "by the C tool.txt": "3 2\n" + LINES.replace("\n", " \n"),
    "glove.txt.gz": gzip.compress(LINES.encode(), mtime=0),
    "word2vec.txt.gz": gzip.compress(b"3 2\n" + LINES.encode(), mtime=0),
    "word2vec.bin": BINARY,
    "without line ends.bin": BINARY.replace(b"\nof", b"of").replace(b"\nParis", b"Paris")[:-1],
    "word2vec.bin.gz": gzip.compress(BINARY, mtime=0),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_gives_its_values(tmp_path, name):
    words = read_word_vectors(written(tmp_path, FORMATS[name], name))
    assert words.name == f"{name}, 3 words, dim 2"
    assert words.dim == 2
    for word, row in ROWS.items():
        vector = words.vector(word)
        assert vector is not None
        assert vector.dtype == torch.float32
        assert tuple(vector.tolist()) == row
        vector.zero_()  # the caller's own copy
        assert tuple(words.vector(word).tolist()) == row
    assert words.vector("missing") is None


def test_of_a_word_given_twice_the_first_counts_and_words_with_a_space_are_read_over(tmp_path):
    words = read_word_vectors(written(tmp_path, "a 1 2\nb 3 4\na 5 6\nat home 7 8\n. . . 7 8\nc 9 10\n"))
    assert [words.vector(word).tolist() for word in "abc"] == [[1, 2], [3, 4], [9, 10]]
    assert words.vector(".") is None


def test_a_binary_file_whose_bytes_are_letters_too(tmp_path):
    """0.0 and 2.0 are bytes 0 and "@", no text but UTF-8."""
    words = read_word_vectors(written(tmp_path, b"1 2\nof " + struct.pack("<2f", 0.0, 2.0)))
    assert words.vector("of").tolist() == [0, 2]


def test_of_a_binary_word_given_twice_the_first_counts(tmp_path):
    words = read_word_vectors(written(tmp_path, BINARY.replace(b"Paris", b"left")))
    assert words.name == "words.txt, 2 words, dim 2"
    assert tuple(words.vector("left").tolist()) == ROWS["left"]


def test_a_word_is_looked_up_as_it_is_then_lower_then_capitalised(tmp_path):
    words = read_word_vectors(written(tmp_path, "Rose 1 0\nrose 2 0\nParis 3 0\nof 4 0\n"))
    found = {word: words.vector(word)[0].item() for word in ("Rose", "rose", "ROSE", "paris", "PARIS", "Of")}
    assert found == {"Rose": 1, "rose": 2, "ROSE": 2, "paris": 3, "PARIS": 3, "Of": 4}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is empty"),
        (LINES + "more 1.0\n", "line 4: 1 values, expected 2"),
        (LINES + "more 1.0 2.0 3.0\n", "line 4: 3 values, expected 2"),
        ("4 2\n" + LINES + "more 1.0\n", "line 5: 1 values, expected 2"),
        (LINES + "\nmore 1.0 2.0\n", "line 4: 0 values, expected 2"),
        ("hello\n", "line 1: 0 values, expected some"),
        ("hello dear world\n", "line 1: could not convert string to float: 'dear'"),
        ("1 2\nhello dear world\n", "line 2: could not convert string to float: 'dear'"),
        ("4 2\n" + LINES, "cut short: its header says 4 words, but it has 3"),
        ("2 2\n" + LINES, "its header says 2 words, but it has 3"),
        ("0 2\n", "its header says 0 words of 2 values"),
        ("2 0\n", "its header says 2 words of 0 values"),
        (LINES + "more nan 1.0\n", "line 4: values that are not finite"),
        (LINES + "more 1.0 -inf\n", "line 4: values that are not finite"),
        (LINES + "more 1.0 1e39\n", "line 4: values that are not finite in float32"),
        (LINES.encode() + "é 1.0 2.0\n".encode("latin-1"), "line 4: .* codec can't decode"),
        (BINARY[:-4], "cut short: its header says 3 words of 2 values, but it has 2"),
        (BINARY[:30], "cut short: its header says 3 words of 2 values, but it has 2"),
        (BINARY[:27], "cut short: its header says 3 words of 2 values, but it has 1"),  # in the second word
        (b"99999999999999 300" + BINARY[3:], "cut short: its header says 99999999999999 words of 300 values, but it"),
        (b"1 2\nw " + struct.pack("<2f", 1.0, float("inf")), "the vector of 'w' has values that are not finite"),
        (b"1 2\nw " + struct.pack("<2f", float("-inf"), 1.0), "the vector of 'w' has values that are not finite"),
        (pickle.dumps(ROWS), r"it is a pickle, .* can run any code .*save_word2vec_format\(\"words.txt\"\)"),
        (gzip.compress(LINES.encode(), mtime=0), "line 1: .* codec can't decode"),  # without .gz
    ],
    ids=range(24),
)
def test_a_file_that_is_not_well_is_an_error_that_names_it(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(ValueError, match=message) as raised:
        read_word_vectors(path)
    assert str(raised.value).startswith(f"{path} cannot be read as word vectors: ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.gz", gzip.compress(LINES.encode(), mtime=0)[:-10], r"cut\.gz cannot .* vectors: Compressed file ended"),
        ("plain.gz", LINES.encode(), r"plain\.gz cannot .* vectors: Not a gzipped file"),
        (
            "bomb.gz",
            gzip.compress(bytes(2**21), mtime=0),
            "vectors: it has a line of more than 1,048,576",
        ),
        ("bomb.gz", gzip.compress(b"1 1\n" + bytes(2**21), mtime=0), "cut short: its header says 1 words of 1 values"),
    ],
)
def test_a_compressed_file_that_is_not_well(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_word_vectors(written(tmp_path, content, name))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file of word vectors .*none\.txt"):
        read_word_vectors(tmp_path / "none.txt")
