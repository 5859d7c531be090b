"""Streams: which classes land in which task; which samples are learned from, and which are asked for."""

from __future__ import annotations

import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.source import Source
from tripletmas.data.splits import split_samples
from tripletmas.data.tasks import Stream, fingerprint, make_stream


def make(counts: list[int], *, groups: list[str] | None = None, names: list[str] | None = None) -> LabelledDataset:
    """Class i has counts[i] samples; a sample is its own position."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    samples = torch.arange(float(len(labels))).unsqueeze(1)
    return LabelledDataset(samples, labels, names or [f"c{i}" for i in range(len(counts))], groups=groups)


def split(source: LabelledDataset | Source, **options) -> Stream:
    return make_stream(source if isinstance(source, Source) else Source(source), **options)[0]


def names(stream: Stream) -> list[str]:
    return [task.name for task in stream]


def classes(stream: Stream) -> list[tuple[int, ...]]:
    return [task.classes for task in stream]


def contents(dataset: LabelledDataset) -> list[int]:
    return dataset.indices.tolist()


def test_tasks_are_as_even_as_possible_in_the_order_of_the_classes():
    stream = split(make([4] * 7), tasks=3)
    assert classes(stream) == [(0, 1, 2), (3, 4), (5, 6)]
    assert names(stream) == ["c0,c1,c2", "c3,c4", "c5,c6"]
    assert len(split(make([4] * 10))) == 5


def test_sizes_can_be_given():
    assert classes(split(make([4] * 6), tasks=[1, 2, 3])) == [(0,), (1, 2), (3, 4, 5)]


def test_a_seed_shuffles_the_classes_and_repeats():
    def shuffled(seed):
        return classes(split(make([4] * 10), tasks=5, order_seed=seed))

    assert shuffled(1) == shuffled(1)
    assert len({str(shuffled(seed)) for seed in (None, 1, 2)}) == 3
    assert sorted(label for task in shuffled(1) for label in task) == list(range(10))


# --- which samples are learned from, and which are asked for


def parts_of(source: Source, **options) -> tuple[set[int], set[int]]:
    """The positions that are learned from, and those that are asked for."""
    split = split_samples(source, **options)
    assert split.test is not None
    return set(split.train.indices.tolist()), set(split.test.indices.tolist())


def literal_hold_out(counts: list[int], share: float, seed: int) -> set[int]:
    """Twin: of each class, the first of a permutation that the name of the class seeds."""
    held_out, start = set(), 0
    for label, count in enumerate(counts):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} c{label}".encode()))
        order = torch.randperm(count, generator=generator).tolist()
        held_out |= {start + i for i in order[: min(max(round(share * count), 2), count - 2)]}
        start += count
    return held_out


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(4, 30), min_size=1, max_size=8),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_held_out_samples_are_a_share_of_each_class_and_none_is_lost(counts, share, seed, data):
    tasks = data.draw(st.integers(1, len(counts)))
    stream = split(make(counts), tasks=tasks, test_share=share, split_seed=seed)
    asked = [i for task in stream for i in contents(task.query)]
    assert set(asked) == literal_hold_out(counts, share, seed)
    assert sorted(asked + [i for task in stream for i in contents(task.train)]) == list(range(sum(counts)))
    for task in stream:
        for label in task.classes:
            held_out = int((task.query.labels == label).sum())
            assert 2 <= held_out <= counts[label] - 2
            # within half a sample of the share, unless one of the two bounds holds
            assert abs(held_out - share * counts[label]) <= 0.5 or held_out in (2, counts[label] - 2)


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(6, 20), min_size=1, max_size=4),
    per_class=st.none() | st.integers(4, 12),
    tested=st.booleans(),
    seed=st.integers(0, 3),
)
def test_validation_sees_no_test_sample_and_learns_from_no_other(counts, per_class, tested, seed):
    # test samples are other positions of the same samples, as those of a reader may be
    whole = make([2 * count for count in counts])
    even = torch.arange(0, len(whole), 2)
    source = Source(whole.subset(even), whole.subset(even + 1) if tested else None)
    options = {"split_seed": seed, "per_class": per_class}
    train, test = parts_of(source, **options)
    learned, asked = parts_of(source, validation=True, **options)
    all_test = parts_of(source, split_seed=seed)[1]  # with those that per_class leaves out
    assert test <= all_test
    assert not asked & all_test
    assert not learned & all_test
    assert learned | asked == train
    assert not learned & asked
    labels = whole.labels
    for label, count in enumerate(counts):
        here = {int(i) for i in (labels == label).nonzero()}
        left = count if tested else count - min(max(round(0.3 * count), 2), count - 2)
        left = left if per_class is None else min(left, per_class)
        assert len(learned & here) + len(asked & here) == left
        assert len(asked & here) == min(max(round(0.3 * left), 2), left - 2)


def test_a_cap_counts_for_each_class_and_each_part():
    source = Source(make([20, 3]), make([9, 2]))
    train, test = parts_of(source, per_class=5)
    assert (len(train), len(test)) == (5 + 3, 5 + 2)
    more, _ = parts_of(source, per_class=6)
    assert train < more  # a larger cap adds samples and swaps none
    assert parts_of(source, per_class=5)[0] == train != parts_of(source, per_class=5, split_seed=1)[0]
    # what is held out is drawn before the cap: 6 of 20, of which 5 are kept
    train, test = parts_of(Source(make([20])), per_class=5)
    everything, queries = parts_of(Source(make([20])))
    assert (len(train), len(test), len(queries)) == (5, 5, 6)
    assert train < everything
    assert test < queries


def test_queries_are_held_out_of_the_groups_that_have_none():
    whole = make([10, 10, 10, 10], groups=["x", "x", "y", "y"])
    y_test = whole.subset([20, 21, 30, 31])
    train = whole.subset([i for i in range(40) if i not in (20, 21, 30, 31)])
    learned, asked = parts_of(Source(train, y_test, hold_out=("x",)))
    x_queries = literal_hold_out([10, 10], 0.3, 0)  # the classes of x have the names and sizes of c0 and c1
    assert asked == {20, 21, 30, 31} | x_queries
    assert learned == set(range(40)) - asked


def test_what_is_held_out_depends_on_the_seed_alone():
    data = make([10] * 6, groups=["x", "x", "y", "y", "z", "z"])

    def held_out(**options):
        return {i for task in split(data, **options) for i in contents(task.query)}

    first = held_out(by="class", tasks=2)
    assert held_out(by="class", tasks=6, order_seed=3) == first
    assert held_out() == first
    assert held_out(groups=["y"]) == {i for i in first if 20 <= i < 40}
    assert held_out(by="class", tasks=2, split_seed=1) != first


def test_a_test_part_gives_the_queries_and_a_gallery_is_split_with_them():
    train, test, gallery = make([2] * 4), make([1] * 4), make([3] * 4)
    second = split(Source(train, test, gallery), tasks=2)[1]
    assert contents(second.train) == [4, 5, 6, 7]
    assert contents(second.query) == [2, 3]
    assert second.gallery is not None
    assert contents(second.gallery) == [6, 7, 8, 9, 10, 11]
    assert split(Source(train, test), tasks=2)[1].gallery is None


def test_what_changes_training_samples_leaves_queries_and_gallery_alone():
    data, test, gallery = (make([4] * 2).with_transform(lambda sample: sample + 1000) for _ in range(3))
    (task,), held_out = split(Source(data, test, gallery), tasks=1), split(data, tasks=1)[0]
    assert float(task.train[0][0]) == 1000
    assert float(task.train.plain()[0][0]) == 0
    assert float(task.query[0][0]) == 0
    assert task.gallery is not None
    assert float(task.gallery[0][0]) == 0
    assert float(held_out.query[0][0]) < 8


def test_groups_are_tasks_and_merge_in_order():
    data = make([4] * 6, groups=["Greek", "Latin", "Greek", "Latin", "Tagalog", "Tagalog"])
    assert names(split(data)) == names(split(data, by="group")) == ["Greek", "Latin", "Tagalog"]
    assert classes(split(data)) == [(0, 2), (1, 3), (4, 5)]
    merged = split(data, tasks=2)
    assert (names(merged), classes(merged)) == (["Greek+Latin", "Tagalog"], [(0, 1, 2, 3), (4, 5)])
    assert names(split(data, tasks=[1, 2])) == ["Greek", "Latin+Tagalog"]
    assert names(split(data, groups=["Tagalog", "Greek"])) == ["Tagalog", "Greek"]
    assert len({tuple(names(split(data, order_seed=seed))) for seed in range(8)}) > 1


def test_tasks_come_in_the_order_of_the_numbers_in_their_names():
    data = make([4] * 12, groups=[f"week{number}" for number in range(12)])
    assert names(split(data)) == [f"week{number}" for number in range(12)]
    data = make([4] * 4, groups=["-1", "-2", "10", "9"])
    assert names(split(data)) == ["-2", "-1", "9", "10"]
    data = make([4] * 4, groups=["2026-10", "2026-9", "2025-12", "b"])
    assert names(split(data)) == ["2025-12", "2026-9", "2026-10", "b"]


def test_classes_of_groups_can_be_split_all_the_same():
    data = make([4] * 6, groups=["Greek", "Latin", "Greek", "Latin", "Tagalog", "Tagalog"])
    assert classes(split(data, by="class", tasks=3)) == [(0, 1), (2, 3), (4, 5)]
    assert classes(split(data, by="class", tasks=2, groups=["Tagalog", "Greek"])) == [(0, 2), (4, 5)]


def test_a_task_of_many_groups_has_a_short_name():
    groups = [f"a rather long alphabet {i}" for i in range(4)]
    assert names(split(make([4] * 4, groups=groups), tasks=[1, 3])) == [
        "a rather long alphabet 0",
        "task01 (a rather long alphabet 1, a rather long alphabet 2, ...)",
    ]


def test_a_task_of_one_class_is_reported(caplog):
    split(make([4, 4, 4]), tasks=2)
    assert [record.getMessage() for record in caplog.records] == [
        "task 'c2' has one class, so a triplet finds no negative in it"
    ]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (make([4, 1, 4]), {"tasks": 1}, r"class 'c1' \(1\): a class needs 4"),
        (make([4, 3, 2]), {"tasks": 1}, r"class 'c1' \(3\), 'c2' \(2\)"),
        (make([1] * 9), {"tasks": 1}, "and 4 more"),
        (
            Source(make([2, 1, 2]), make([2] * 3)),
            {"tasks": 1},
            r"class 'c1' \(1\): a class needs 2 to form a positive p",
        ),
        (make([4] * 3), {"tasks": 5}, "5 tasks need at least 5 classes, got 3"),
        (make([4] * 3), {}, "5 tasks need at least 5 classes, got 3"),
        (make([4] * 3), {"tasks": 0}, "tasks must be >= 1, got 0"),
        (make([4] * 3), {"tasks": [1, 1]}, r"tasks=\[1, 1\] must be sizes >= 1 that add up to the 3 classes"),
        (make([4] * 3), {"tasks": [3, 0]}, r"tasks=\[3, 0\]"),
        (make([4] * 3), {"tasks": []}, r"tasks=\[\]"),
        (make([4] * 3), {"tasks": 1, "test_share": 0.0}, "test_share must lie between 0 and 1, got 0.0"),
        (make([4] * 3), {"tasks": 1, "test_share": 1.0}, "got 1.0"),
        (make([4] * 3), {"unseen": -1}, "leave something of 3 classes or groups, got -1"),
        (make([4] * 3), {"unseen": 3}, "leave something of 3 classes or groups, got 3"),
        (Source(make([4] * 2), make([2] * 2, names=["c0", "x"])), {"tasks": 1}, "same class names"),
        (Source(make([4, 4]), make([0, 2])), {"tasks": 2}, "task 'c0' has no queries"),
        (Source(make([4, 4]), make([4, 4]), make([4, 0])), {"tasks": 2}, "task 'c1' has nothing to search"),
        (Source(make([4, 0]), make([2, 2])), {"tasks": 1}, "queries, but nothing to learn from, for class 'c1'"),
        (make([9]), {"per_class": 1, "tasks": 1}, "per_class must be >= 2 to form a positive pair, got 1"),
        (
            make([9, 5]),
            {"validation": True, "tasks": 1},
            r"in class 'c1' \(3\): a class needs 4 besides its test samples, of which 2 are learned and 2 held out for "
            "validation",
        ),
        (
            Source(make([9, 9]), make([2, 2])),
            {"validation": True, "per_class": 3, "tasks": 1},
            r"'c0' \(3\), 'c1' \(3\): a class needs 4 besides its test samples \(per_class=3\)",
        ),
        (
            Source(make([9, 3], groups=["x", "y"]), make([2, 0]), hold_out=("y",)),
            {},
            r"'c1' \(3\): a class needs 4, of which 2 are learned and 2 held out as queries",
        ),
        (
            Source(make([1, 9], groups=["x", "y"]), make([2, 0]), hold_out=("y",)),
            {},
            r"'c0' \(1\): a class needs 2 to form a positive pair",
        ),
    ],
)
def test_a_split_that_cannot_work_says_why(source, options, message):
    with pytest.raises(ValueError, match=message):
        split(source, **options)


@pytest.mark.parametrize(
    ("groups", "options", "message"),
    [
        (["Greek", "Latin"], {"groups": ["Grek"]}, r"no group 'Grek' \(did you mean 'Greek'"),
        (["Greek", "Latin"], {"groups": ["zzz"]}, r"no group 'zzz' \(known: Greek, Latin"),
        (["Greek", "Latin"], {"groups": ["Greek", "Greek"]}, "each group can be named once, got 'Greek', 'Greek'"),
        (["Greek", "Latin"], {"tasks": 3}, "3 tasks need at least 3 groups, got 2"),
        (["Greek", "Latin"], {"by": "alphabet"}, "by must be one of class, group, got 'alphabet'"),
        (None, {"by": "group"}, "no groups of classes: split it by class"),
        (None, {"groups": ["Greek"]}, "no groups of classes, so groups 'Greek' cannot be chosen"),
    ],
)
def test_groups_that_are_not_there_are_named(groups, options, message):
    with pytest.raises(ValueError, match=message):
        split(make([4] * 2, groups=groups), **options)


def test_groups_have_the_order_of_their_names_or_of_the_source_unless_another_is_named():
    assert names(split(make([4] * 4, groups=["2", "10", "2", "1"]))) == ["1", "2", "10"]
    source = Source(make([4] * 3, groups=["x", "y", "z"]), group_order=("z", "x", "y"))
    assert names(split(source)) == ["z", "x", "y"]
    assert names(split(source, tasks=[2, 1])) == ["z+x", "y"]
    assert names(split(source, groups=["y", "z"])) == ["y", "z"]


def test_a_fingerprint_tells_whether_samples_changed():
    one, same, other = (split(make([6, 6]), tasks=2, split_seed=seed)[0] for seed in (0, 0, 1))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)


def test_options_of_the_split_reach_the_stream():
    source = Source(make([20] * 4), make([6] * 4), make([3] * 4))
    limited = split(source, tasks=2, per_class=5)
    assert [(len(task.train), len(task.query)) for task in limited] == [(10, 10)] * 2
    checked = split(source, tasks=2, validation=True, test_share=0.25)
    assert [(len(task.train), len(task.query), task.gallery) for task in checked] == [(30, 10, None)] * 2
    assert fingerprint(split(source, tasks=2, per_class=5, split_seed=1)[0]) != fingerprint(limited[0])


def image_source() -> Source:
    image = torch.zeros(1, 8, 8)
    image[0, 0, 0] = 1.0  # a corner that a flip moves and a crop may remove
    return Source(LabelledDataset(image.repeat(8, 1, 1, 1), torch.arange(8) // 4, ["a", "b"]))


def test_flips_and_crops_follow_the_global_seed():
    def seen(augment):
        (task,) = split(image_source(), tasks=1, augment=augment)
        torch.manual_seed(0)
        return torch.cat([task.train[[0, 1, 2, 3]][0] for _ in range(8)])

    assert torch.equal(seen("flip"), seen("flip"))
    corners = {(int(x[0, 0, 0]), int(x[0, 0, 7])) for x in seen("flip")}
    assert corners == {(1, 0), (0, 1)}
    cropped = seen("crop-flip")
    assert cropped.shape[1:] == (1, 8, 8)
    assert {int(x.sum()) for x in cropped} == {0, 1}  # padded by 1: a third of the shifts push the row out
    assert any(x[0, 1, :].sum() == 1 for x in cropped)


def test_augmentation_needs_images_and_a_known_name():
    with pytest.raises(ValueError, match="unknown augmentation 'rotate'"):
        split(image_source(), tasks=1, augment="rotate")
    with pytest.raises(ValueError, match="needs images"):
        split(make([4] * 2), tasks=1, augment="flip")


def test_unseen_classes_are_the_last_and_in_no_task():
    source = Source(make([6] * 6))
    stream, unseen = make_stream(source, tasks=2, unseen=2)
    assert classes(stream) == [(0, 1), (2, 3)]
    assert unseen is not None
    assert (unseen.name, unseen.classes) == ("unseen", (4, 5))
    # their queries are those that a stream would draw: nothing depends on which classes are left out
    with_all, nothing = make_stream(source, tasks=3)
    assert nothing is None
    assert contents(unseen.query) == contents(with_all[2].query)
    assert contents(stream[0].query) == contents(with_all[0].query)


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_unseen_groups_and_their_order(seed):
    source = Source(make([4] * 6, groups=["x", "x", "y", "y", "z", "z"]))
    stream, unseen = make_stream(source, unseen=1, order_seed=seed)
    assert len(stream) == 2
    assert unseen is not None
    assert sorted(label for task in (*stream, unseen) for label in task.classes) == list(range(6))


# --- classes of several tasks


def months(counts: dict[str, list[int]]) -> LabelledDataset:
    """group -> how many samples of each class; a sample is its own position, groups one after the other."""
    cells = [(label, month) for month, of in counts.items() for label, count in enumerate(of) for _ in range(count)]
    labels = torch.tensor([label for label, _ in cells])
    names = [f"c{i}" for i in range(len(next(iter(counts.values()))))]
    samples = torch.arange(float(len(labels))).unsqueeze(1)
    return LabelledDataset(samples, labels, names, sample_groups=[month for _, month in cells])


SHARED = {"jan": [10, 8, 0, 0], "feb": [6, 0, 9, 0], "mar": [4, 5, 6, 7]}
STARTS = {"jan": 0, "feb": 18, "mar": 33}


def literal_queries(counts: list[int], start: int) -> set[int]:
    """Twin of one group: as `literal_hold_out`, of classes that have samples there."""
    asked = set()
    for label, count in enumerate(counts):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(zlib.crc32(f"0 c{label}".encode())))
        size = min(max(round(0.3 * count), 2), count - 2) if count else 0
        asked |= {start + i for i in order.tolist()[:size]}
        start += count
    return asked


def test_tasks_may_share_classes_and_share_no_sample(caplog):
    caplog.set_level("INFO")
    stream = split(months(SHARED))
    assert names(stream) == ["feb", "jan", "mar"]
    assert classes(stream) == [(0, 2), (0, 1), (0, 1, 2, 3)]
    for task in stream:
        start, size = STARTS[task.name], sum(SHARED[task.name])
        expected = literal_queries(SHARED[task.name], start)
        assert set(contents(task.query)) == expected
        assert set(contents(task.train)) == set(range(start, start + size)) - expected
    assert [record.getMessage() for record in caplog.records] == [
        "task 'jan': 1 of 2 classes were known before",
        "task 'mar': 3 of 4 classes were known before",
    ]


def test_a_month_more_changes_nothing_of_those_before_it_whether_it_shares_classes_or_not():
    alone = split(make([10, 8], groups=["jan", "jan"]))
    grown = split(months({name: of[:2] for name, of in SHARED.items() if name != "feb"}))
    assert [fingerprint(task) for task in alone] == [fingerprint(task) for task in grown[:1]]
    whole = split(months(SHARED), groups=["jan", "mar"])
    assert contents(whole[0].query) == contents(alone[0].query)


def test_months_merge_and_classes_can_be_split_all_the_same():
    merged = split(months(SHARED), tasks=[1, 2], groups=["mar", "jan", "feb"])
    assert (names(merged), classes(merged)) == (["mar", "jan+feb"], [(0, 1, 2, 3), (0, 1, 2)])
    assert len(merged[1].train) + len(merged[1].query) == 18 + 15
    by_class = split(months(SHARED), by="class", tasks=2)
    assert classes(by_class) == [(0, 1), (2, 3)]
    assert sorted(contents(by_class[0].train) + contents(by_class[0].query)) == [
        i for i, label in enumerate(months(SHARED).labels.tolist()) if label < 2
    ]
    jan = split(months(SHARED), by="class", groups=["jan"], tasks=2)
    assert sorted(i for task in jan for part in (task.train, task.query) for i in contents(part)) == list(range(18))


def test_a_cap_and_validation_count_in_each_month():
    stream = split(months({"jan": [12, 12], "feb": [12, 0]}), per_class=6)
    assert [(len(task.train), len(task.query)) for task in stream] == [(6, 4), (12, 8)]
    checked = split(months({"jan": [12, 12], "feb": [12, 0]}), validation=True)
    assert [(len(task.train), len(task.query)) for task in checked] == [(6, 2), (12, 4)]  # of 8 left in each


def test_what_is_never_learned_has_no_class_of_a_task(caplog):
    stream, unseen = make_stream(Source(months(SHARED)), unseen=1)
    assert names(stream) == ["feb", "jan"]
    assert unseen is not None
    assert unseen.classes == (3,)
    assert sorted(contents(unseen.train) + contents(unseen.query)) == list(range(48, 55))
    assert "unseen: left out 3 classes of 'mar', which tasks learn" in caplog.text
    with pytest.raises(ValueError, match="unseen: every class of 'feb' is learned in other tasks"):
        make_stream(Source(months(SHARED)), groups=["jan", "mar", "feb"], unseen=1)


def test_a_class_with_too_few_samples_in_a_month_is_named_with_it():
    with pytest.raises(ValueError, match=r"too few training samples in class 'c0' of 'feb' \(3\): a class needs 4"):
        split(months({"jan": [9, 9], "feb": [3, 9]}))
    whole = months({"jan": [6, 6], "feb": [6, 0]})
    train = whole.of_groups(["jan"])
    with pytest.raises(ValueError, match="queries, but nothing to learn from, for class 'c0' of 'feb'"):
        split(Source(train, whole))
    with pytest.raises(ValueError, match="one group for each sample, and take the place of groups"):
        LabelledDataset(torch.zeros(2, 1), torch.zeros(2), ["a"], groups=["x"], sample_groups=["x", "y"])


@pytest.mark.parametrize("part", ["test", "gallery"])
def test_what_is_learned_and_what_is_asked_for_have_the_same_classes(part: str):
    train, other = make([4, 4]), make([4, 4], names=["c0", "other"])
    parts = {"test": make([4, 4]), "gallery": make([4, 4])} | {part: other}
    with pytest.raises(ValueError, match=f"train and {part} must have the same class names"):
        split(Source(train, **parts), tasks=1)
