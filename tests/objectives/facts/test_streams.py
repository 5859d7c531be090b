"""Streams of facts: which facts and which images each task has."""

from __future__ import annotations

import pytest
import torch

from tripletmas.data.dataset import LabelledDataset, concatenate
from tripletmas.data.source import Source
from tripletmas.objectives.facts.fact import parse_fact
from tripletmas.objectives.facts.language import LanguageView, language_view
from tripletmas.objectives.facts.streams import _stable_clusters, make_fact_stream
from tripletmas.objectives.facts.words import hashed_words

SINGLE = [[fact] for fact in range(6)]  # an image of each fact
NAMES = ("circle", "square", "circle, red", "square, red", "circle, above, square", "square, above, circle")


def source_of(
    train: list[list[int]], test: list[list[int]] | None = None, groups: list[str] | None = None
) -> tuple[Source, LanguageView]:
    """Images of which these facts hold; sample number i is filled with i."""
    rows = [*train, *(test or [])]
    truth = torch.zeros(len(rows), len(NAMES), dtype=torch.bool)
    for row, columns in enumerate(rows):
        truth[row, columns] = True
    samples = torch.arange(len(rows)).float()[:, None].expand(-1, 2)
    everything = LabelledDataset(samples, truth, NAMES, groups=groups)
    parts = everything.subset(range(len(train))), everything.subset(range(len(train), len(rows)))
    language = language_view([parse_fact(name) for name in NAMES], hashed_words(16))
    return Source(parts[0], parts[1] if test else None), language


def test_a_task_has_its_facts_and_the_images_that_show_one():
    source, language = source_of([[0, 2], [1], [0, 4], [3, 5], [2]], [[0, 5], [1, 2, 3, 4]])
    stream, unseen = make_fact_stream(source, language, split="order")
    assert unseen is None
    assert [task.name for task in stream] == ["order 1", "order 2", "order 3"]
    assert [task.classes for task in stream] == [(0, 1), (2, 3), (4, 5)]
    assert [task.train.indices.tolist() for task in stream] == [[0, 1, 2], [0, 3, 4], [2, 3]]
    assert [task.query.indices.tolist() for task in stream] == [[5, 6], [6], [5, 6]]
    # of an image a task tells its own facts only; what holds besides is in `truth`
    assert stream[1].train.labels.nonzero().tolist() == [[0, 2], [1, 3], [2, 2]]
    assert stream[1].train.truth.nonzero().tolist() == [[0, 0], [0, 2], [1, 3], [1, 5], [2, 2]]
    _, labels = stream[0].query[[0, 1]]
    assert labels.nonzero().tolist() == [[0, 0], [1, 1]]


def test_random_tasks_are_even_disjoint_and_seeded():
    source, language = source_of(SINGLE * 2, SINGLE)
    first, _ = make_fact_stream(source, language, split="random", tasks=4, split_seed=1)
    again, _ = make_fact_stream(source, language, split="random", tasks=4, split_seed=1)
    other, _ = make_fact_stream(source, language, split="random", tasks=4, split_seed=2)
    assert sorted(len(task.classes) for task in first) == [1, 1, 2, 2]
    assert sorted(label for task in first for label in task.classes) == list(range(6))
    assert [task.classes for task in first] == [task.classes for task in again]
    assert [task.classes for task in first] != [task.classes for task in other]


def test_semantic_tasks_keep_near_words_together():
    """Unit vectors of facts with nothing in common are sqrt(2) apart, of the same two of three parts sqrt(2 / 3)."""
    names = ["circle, above, ball", "circle, above, disc", "square, left of, ring", "square, left of, star"]
    names += ["drop, left of, ring", "ball, left of, ring"]
    truth = torch.eye(6, dtype=torch.bool).repeat(2, 1)
    everything = LabelledDataset(torch.zeros(12, 2), truth, names)
    language = language_view([parse_fact(name) for name in names], hashed_words(64))
    source = Source(everything.subset(range(6)), everything.subset(range(6, 12)))
    stream, _ = make_fact_stream(source, language, split="semantic", tasks=2)
    assert {task.classes for task in stream} == {(0, 1), (2, 3, 4, 5)}
    assert {task.name[3:] for task in stream} == {"(circle)", "(square+ball)"}  # two, the most frequent first


def test_the_tasks_of_the_data_come_in_the_order_of_their_numbers():
    source, language = source_of(SINGLE, SINGLE, groups=["10", "9", "10", "9", "10", "1"])
    stream, _ = make_fact_stream(source, language)
    assert [(task.name, task.classes) for task in stream] == [("1", (5,)), ("9", (1, 3)), ("10", (0, 2, 4))]
    with pytest.raises(ValueError, match=r"split 'given' makes 3 tasks \(1, 9, 10\), got tasks=4"):
        make_fact_stream(source, language, tasks=4)


def test_what_is_held_out_does_not_depend_on_where_the_images_are():
    truth = torch.ones(40, 2, dtype=torch.bool)
    language = language_view([parse_fact(name) for name in NAMES[:2]], hashed_words(16))
    held = []
    for root in ("photos", "/data/moved/photos"):
        paths = [f"{root}/{number}.png" for number in range(40)]
        source = Source(LabelledDataset(torch.zeros(40, 2), truth, NAMES[:2], paths=paths))
        held.append(make_fact_stream(source, language, tasks=1, split="random")[0][0].query.indices.tolist())
    assert held[0] == held[1]


def test_facts_that_no_training_image_shows_are_in_no_task():
    source, language = source_of([[0, 1], [2, 3]], [[0, 4], [2, 1], [3]])
    stream, unseen = make_fact_stream(source, language, tasks=2, split="order")
    assert unseen is not None
    assert unseen.classes == (4,)
    assert unseen.query.indices.tolist() == [2, 3, 4]  # all test images, so that there is something to confuse it with
    assert unseen.query.labels.nonzero().tolist() == [[0, 4]]
    assert 4 not in {label for task in stream for label in task.classes}


def test_facts_that_no_test_image_shows_are_told(caplog):
    source, language = source_of([[0, 1], [2, 3]], [[0], [2]])
    stream, _ = make_fact_stream(source, language, split="order")
    assert stream[0].classes == (0, 1)
    assert "task 'order 1': no test image shows <square>, so nobody asks for 1 facts" in caplog.text


def test_clusters_do_not_hang_on_rounding(caplog):
    """The corners of a square: from two that are opposite, the others are as near to one centre as to the other."""
    square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    generator = torch.Generator().manual_seed(0)
    for seed in range(10):
        numbers = _stable_clusters(square, 2, seed)
        assert torch.bincount(numbers).tolist() == [2, 2]
        for _ in range(4):
            rounded = square + 2e-7 * torch.randn(square.shape, generator=generator)
            assert torch.equal(_stable_clusters(rounded, 2, seed), numbers)
    assert not caplog.text


def test_clusters_that_hang_on_rounding_from_every_start_are_told(caplog):
    """Of three corners as far from each other, two are a cluster: any two."""
    _stable_clusters(torch.eye(3), 2, 0)
    assert "the semantic split hangs on rounding" in caplog.text


def test_facts_of_test_images_with_a_part_that_is_not_learned_are_told(caplog):
    """<square, red> is a new combination of square, <circle, red>; <circle, above, square> has a new word."""
    source, language = source_of([[0, 1], [2]], [[0, 1, 3], [2]])
    make_fact_stream(source, language, tasks=1)
    assert not caplog.text
    source, language = source_of([[0, 1], [2]], [[0, 1, 3], [2, 4]])
    make_fact_stream(source, language, tasks=1)
    assert "only test images show <circle, above, square>, with a word that is not learned in that" in caplog.text
    assert "red" not in caplog.text


def test_images_are_held_out_where_there_is_no_test_part(caplog):
    """An image is held out by its own number: more images do not change that."""
    few, language = source_of([[0, 1]] * 40)
    many, _ = source_of([[0, 1]] * 80)
    held = [
        make_fact_stream(source, language, tasks=1, split="random", test_share=0.3)[0][0].query.indices.tolist()
        for source in (few, many)
    ]
    assert 5 <= len(held[0]) <= 20  # 12 of 40 on average; deviation 2.9
    assert held[0] == [index for index in held[1] if index < 40]
    train = make_fact_stream(few, language, tasks=1, split="random")[0][0].train.indices.tolist()
    assert sorted([*train, *held[0]]) == list(range(40))
    rare, _ = source_of([[0, 1, *([4] if number == held[0][0] else [])] for number in range(40)])
    make_fact_stream(rare, language, tasks=1, split="random")
    assert not caplog.text  # by chance, the only image of a fact was held out


def test_validation_puts_the_test_images_away():
    source, language = source_of([[0, 1]] * 40, [[0], [1]])
    task = make_fact_stream(source, language, tasks=1, split="random", validation=True)[0][0]
    assert set(task.query.indices.tolist()).isdisjoint({40, 41})
    assert set(task.query.indices.tolist()).isdisjoint(task.train.indices.tolist())


def test_joint_training_has_each_image_once_with_the_facts_of_all_tasks():
    source, language = source_of([[0, 2], [1], [0, 4]], [[0, 2, 4, 1]])
    stream, _ = make_fact_stream(source, language, split="order")
    both = concatenate([stream[0].train, stream[1].train])
    assert both.indices.tolist() == [0, 1, 2]
    assert both.labels.nonzero().tolist() == [[0, 0], [0, 2], [1, 1], [2, 0]]


@pytest.mark.parametrize(
    ("train", "test", "options", "message"),
    [
        (
            SINGLE,
            SINGLE,
            {"tasks": 7, "split": "random"},
            "tasks must lie between 1 and the 6 facts that are learned, got",
        ),
        (SINGLE, SINGLE, {"tasks": 0, "split": "random"}, "tasks must lie between 1 and"),
        (
            SINGLE,
            SINGLE,
            {"split": "alphabetic"},
            "split must be one of given, random, semantic, order, got 'alphabetic'",
        ),
        (SINGLE, SINGLE, {"split": "given"}, "split 'given' needs a column task in the data"),
        (SINGLE, SINGLE, {"test_share": 1.0}, "test_share must lie between 0 and 1"),
        ([[0], []], [[0]], {}, r"1 images have no fact \(image number 1\)"),
        ([[0], [2]], [[0]], {"split": "order"}, "task 'order 2' has no test image that shows one of its 1 facts"),
        ([[0]], None, {}, "1 images are too few to hold out 30% of them"),
    ],
)
def test_what_does_not_fit_is_refused(train, test, options, message: str):
    with pytest.raises(ValueError, match=message):
        make_fact_stream(*source_of(train, test), **options)
