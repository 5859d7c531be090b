"""Vectors of words, of their letters and of files in each format."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
import torch

from tripletmas.objectives.facts.words import hashed_words, phrase_vector, read_word_vectors

ROWS = {"left": (1.0, -2.5), "of": (0.25, 3.0), "Paris": (-1.0, 0.5)}
LINES = "".join(f"{word} {x} {y}\n" for word, (x, y) in ROWS.items())
BINARY = b"3 2\n" + b"".join(word.encode() + b" " + struct.pack("<2f", *row) + b"\n" for word, row in ROWS.items())


@pytest.fixture(scope="module")
def gensim():
    return pytest.importorskip("gensim", reason="files of word vectors are read by gensim")


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
    code = (
        "from tripletmas.facts.words import hashed_words; "
        "print(hashed_words(16).vector('square').numpy().tobytes().hex())"
    )
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert run.stdout.strip() == first.numpy().tobytes().hex()


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
    "glove.txt.gz": gzip.compress(LINES.encode()),
    "word2vec.txt.gz": gzip.compress(b"3 2\n" + LINES.encode()),
    "word2vec.bin": BINARY,
    "without line ends.bin": BINARY.replace(b"\nof", b"of").replace(b"\nParis", b"Paris")[:-1],
    "word2vec.bin.gz": gzip.compress(BINARY),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_gives_its_values(tmp_path, request, name):
    if ".bin" in name:
        request.getfixturevalue("gensim")
    words = read_word_vectors(written(tmp_path, FORMATS[name], name))
    assert words.name == f"{name}, 3 words, dim 2"
    assert words.dim == 2
    for word, row in ROWS.items():
        vector = words.vector(word)
        assert vector is not None
        assert vector.dtype == torch.float32
        assert tuple(vector.tolist()) == row
    assert words.vector("missing") is None


def test_of_a_word_given_twice_the_first_counts_and_words_with_a_space_are_read_over(tmp_path):
    words = read_word_vectors(written(tmp_path, "a 1 2\nb 3 4\na 5 6\nat home 7 8\n. . . 7 8\nc 9 10\n"))
    assert [words.vector(word).tolist() for word in "abc"] == [[1, 2], [3, 4], [9, 10]]
    assert words.vector(".") is None


@pytest.mark.parametrize("name", ["words.kv", "words.kv.gz"])
def test_saved_keyed_vectors_give_their_values(tmp_path, gensim, name):
    from gensim.models import KeyedVectors

    saved = KeyedVectors(2)
    saved.add_vectors(list(ROWS), list(ROWS.values()))
    # "vectors" apart, as gensim does by itself where they are large; compressed files are never memory-mapped
    saved.save(str(tmp_path / name), separately=["vectors"])
    words = read_word_vectors(tmp_path / name)
    assert [tuple(words.vector(word).tolist()) for word in ROWS] == list(ROWS.values())
    words.vector("left").zero_()  # the caller's own copy
    assert tuple(words.vector("left").tolist()) == ROWS["left"]


def test_saved_keyed_vectors_are_memory_mapped(tmp_path, gensim, monkeypatch):
    from gensim.models import KeyedVectors

    saved = KeyedVectors(2)
    saved.add_vectors(["left"], [ROWS["left"]])
    saved.save(str(tmp_path / "words.kv"), separately=["vectors"])
    asked = []
    load = KeyedVectors.load.__func__
    monkeypatch.setattr(
        KeyedVectors, "load", classmethod(lambda cls, path, mmap=None: asked.append(mmap) or load(cls, path, mmap=mmap))
    )
    read_word_vectors(tmp_path / "words.kv")
    assert asked == ["r"]


def test_a_word_is_looked_up_as_it_is_then_lower_then_capitalised(tmp_path):
    words = read_word_vectors(written(tmp_path, "Rose 1 0\nrose 2 0\nParis 3 0\nof 4 0\n"))
    found = {word: words.vector(word)[0].item() for word in ("Rose", "rose", "ROSE", "paris", "PARIS", "Of")}
    assert found == {"Rose": 1, "rose": 2, "ROSE": 2, "paris": 3, "PARIS": 3, "Of": 4}


def raises_for(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(ValueError, match=message) as raised:
        read_word_vectors(path)
    assert str(raised.value).startswith(f"{path} cannot be read as word vectors: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is empty"),
        (LINES + "more 1.0\n", "line 4 has 1 values, expected 2"),
        (LINES + "more 1.0 2.0 3.0\n", "line 4 has 3 values, expected 2"),
        ("4 2\n" + LINES + "more 1.0\n", "line 5 has 1 values, expected 2"),
        (LINES + "\nmore 1.0 2.0\n", "line 4 has 0 values, expected 2"),
        ("hello\n", "line 1 has 0 values, expected some"),
        ("hello dear world\n", "line 1: could not convert string to float: 'dear'"),
        ("1 2\nhello dear world\n", "line 2: could not convert string to float: 'dear'"),
        ("4 2\n" + LINES, "cut short: its header says 4 words, but it has 3"),
        ("2 2\n" + LINES, "its header says 2 words, but it has 3"),
        ("0 2\n", "its header says 0 words of 2 values"),
        ("2 0\n", "its header says 2 words of 0 values"),
        (LINES + "more nan 1.0\n", "line 4 has values that are not finite"),
        (LINES + "more 1.0 -inf\n", "line 4 has values that are not finite"),
        (LINES + "more 1.0 1e39\n", "line 4 has values that are not finite in float32"),
    ],
)
def test_a_text_that_is_not_well_is_an_error_that_names_the_line(tmp_path, content, message):
    raises_for(tmp_path, content, message)


def test_a_text_of_another_encoding(tmp_path):
    raises_for(tmp_path, "é 1.0 2.0\n".encode("latin-1"), "codec can't decode")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BINARY[:30], "cut short: too few bytes for the 3 words of 2 values"),  # the least is 4 and 3 times 9
        (BINARY[:-4], "unexpected end of input"),
        (b"99999999999999 300" + BINARY[3:], "cut short: too few bytes"),
        (b"1 2\nw " + struct.pack("<2f", 1.0, float("inf")), "the vector of 'w' has values that are not finite"),
        (b"1 2\nw " + struct.pack("<2f", float("-inf"), 1.0), "the vector of 'w' has values that are not finite"),
        (b"\x80\x04 no pickle", "words"),
    ],
    ids=["cut short", "cut in the last word", "header", "inf", "-inf", "pickle"],
)
@pytest.mark.usefixtures("gensim")
def test_a_binary_file_that_is_not_well_is_an_error_that_names_it(tmp_path, content, message):
    raises_for(tmp_path, content, message)


def test_a_saved_model_is_not_its_vectors(tmp_path, gensim):
    from gensim.models import Word2Vec

    Word2Vec(vector_size=2, min_count=1).save(str(tmp_path / "model"))
    with pytest.raises(ValueError, match=r"model cannot .* it holds a Word2Vec, not KeyedVectors.* save its `wv`"):
        read_word_vectors(tmp_path / "model")


def test_a_compressed_file_that_is_cut_short(tmp_path):
    path = written(tmp_path, gzip.compress(LINES.encode())[:-10], "words.gz")
    with pytest.raises(ValueError, match=r"words\.gz cannot be read as word vectors: Compressed file ended"):
        read_word_vectors(path)


def test_values_of_saved_keyed_vectors_are_checked_when_asked_for(tmp_path, gensim):
    from gensim.models import KeyedVectors

    saved = KeyedVectors(2)
    saved.add_vectors(["well", "ill"], [(1.0, 2.0), (float("nan"), 0.0)])
    saved.save(str(tmp_path / "words.kv"))
    words = read_word_vectors(tmp_path / "words.kv")
    assert words.vector("well").tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"words\.kv: the vector of 'ill' has values that are not finite"):
        words.vector("ill")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file of word vectors .*none\.txt"):
        read_word_vectors(tmp_path / "none.txt")


def test_without_gensim_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    with pytest.raises(ValueError, match=r'words\.txt .*needs gensim: pip install "tripletmas\[words\]"'):
        read_word_vectors(written(tmp_path, BINARY))
