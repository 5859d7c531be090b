"""Streams: which classes and which samples land in which task."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tripletmas.data.dataset import LabelledDataset, Source
from tripletmas.data.tasks import fingerprint, make_stream, make_unseen, split_by_class, split_by_group


def make(counts: list[int], *, groups: list[str] | None = None, names: list[str] | None = None) -> LabelledDataset:
    """Class i has counts[i] samples; a sample is its own position."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    samples = torch.arange(float(len(labels))).unsqueeze(1)
    return LabelledDataset(samples, labels, names or [f"c{i}" for i in range(len(counts))], groups=groups)


def contents(dataset: LabelledDataset) -> list[int]:
    return dataset.indices.tolist()


def test_tasks_are_as_even_as_possible_in_the_order_of_the_classes():
    stream = split_by_class(make([4] * 7), tasks=3)
    assert [task.classes for task in stream] == [(0, 1, 2), (3, 4), (5, 6)]
    assert [task.name for task in stream] == ["c0,c1,c2", "c3,c4", "c5,c6"]


def test_sizes_can_be_given():
    assert [task.classes for task in split_by_class(make([4] * 6), tasks=[1, 2, 3])] == [(0,), (1, 2), (3, 4, 5)]


def test_a_seed_shuffles_the_classes_and_repeats():
    def classes(seed):
        return [task.classes for task in split_by_class(make([4] * 10), tasks=5, order_seed=seed)]

    assert classes(1) == classes(1)
    assert len({str(classes(seed)) for seed in (None, 1, 2)}) == 3
    assert sorted(label for task in classes(1) for label in task) == list(range(10))


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(4, 30), min_size=1, max_size=8),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_held_out_samples_are_a_share_of_each_class_and_none_is_lost(counts, share, seed, data):
    tasks = data.draw(st.integers(1, len(counts)))
    stream = split_by_class(make(counts), tasks=tasks, test_share=share, split_seed=seed)
    everything = [i for task in stream for i in contents(task.train) + contents(task.query)]
    assert sorted(everything) == list(range(sum(counts)))
    for task in stream:
        for label in task.classes:
            held_out = int((task.query.labels == label).sum())
            assert 2 <= held_out <= counts[label] - 2
            # within half a sample of the share, unless one of the two bounds holds
            assert abs(held_out - share * counts[label]) <= 0.5 or held_out in (2, counts[label] - 2)


def test_what_is_held_out_depends_on_the_seed_alone():
    data = make([10] * 6, groups=["x", "x", "y", "y", "z", "z"])

    def held_out(stream):
        return {i for task in stream for i in contents(task.query)}

    first = held_out(split_by_class(data, tasks=2))
    assert held_out(split_by_class(data, tasks=6, order_seed=3)) == first
    assert held_out(split_by_group(data)) == first
    assert held_out(split_by_group(data, groups=["y"])) == {i for i in first if 20 <= i < 40}
    assert held_out(split_by_class(data, tasks=2, split_seed=1)) != first


def test_a_test_part_gives_the_queries_and_a_gallery_is_split_with_them():
    train, test, gallery = make([2] * 4), make([1] * 4), make([3] * 4)
    second = split_by_class(train, test, tasks=2, gallery=gallery)[1]
    assert contents(second.train) == [4, 5, 6, 7]
    assert contents(second.query) == [2, 3]
    assert second.gallery is not None
    assert contents(second.gallery) == [6, 7, 8, 9, 10, 11]
    assert split_by_class(train, test, tasks=2)[1].gallery is None


def test_augmentation_changes_training_samples_only():
    data, plus = make([4] * 2), lambda sample: sample + 1000
    stream = split_by_class(data, make([2] * 2), tasks=1, gallery=make([2] * 2), augment=plus)
    assert float(stream[0].train[0][0]) == 1000
    assert float(stream[0].train.plain()[0][0]) == 0
    assert float(stream[0].query[0][0]) == 0
    assert stream[0].gallery is not None
    assert float(stream[0].gallery[0][0]) == 0
    held_out = split_by_class(data, tasks=1, augment=plus)[0]
    assert float(held_out.query[0][0]) < 8


def test_groups_are_tasks_and_merge_in_order():
    data = make([4] * 6, groups=["Greek", "Latin", "Greek", "Latin", "Tagalog", "Tagalog"])
    stream = split_by_group(data)
    assert [(task.name, task.classes) for task in stream] == [("Greek", (0, 2)), ("Latin", (1, 3)), ("Tagalog", (4, 5))]
    merged = split_by_group(data, tasks=2)
    assert [(task.name, task.classes) for task in merged] == [("Greek+Latin", (0, 1, 2, 3)), ("Tagalog", (4, 5))]
    assert [task.name for task in split_by_group(data, tasks=[1, 2])] == ["Greek", "Latin+Tagalog"]
    assert [task.name for task in split_by_group(data, groups=["Tagalog", "Greek"])] == ["Tagalog", "Greek"]
    orders = {tuple(task.name for task in split_by_group(data, order_seed=seed)) for seed in range(8)}
    assert len(orders) > 1


def test_a_task_of_many_groups_has_a_short_name():
    groups = [f"a rather long alphabet {i}" for i in range(4)]
    names = [task.name for task in split_by_group(make([4] * 4, groups=groups), tasks=[1, 3])]
    assert names[0] == "a rather long alphabet 0"
    assert names[1] == "task01 (a rather long alphabet 1, a rather long alphabet 2, ...)"


def test_a_task_of_one_class_is_reported(caplog):
    split_by_class(make([4, 4, 4]), tasks=2)
    assert [record.getMessage() for record in caplog.records] == [
        "task 'c2' has one class, so a triplet finds no negative in it"
    ]


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ([4, 1, 4], {"tasks": 1}, r"class 'c1' \(1\): a class needs 4"),
        ([4, 3, 2], {"tasks": 1}, r"class 'c1' \(3\), 'c2' \(2\)"),
        ([1] * 9, {"tasks": 1}, "and 4 more"),
        ([2, 1, 2], {"tasks": 1, "test": make([2] * 3)}, r"class 'c1' \(1\): a class needs 2 to form a positive pair"),
        ([4] * 3, {"tasks": 5}, "5 tasks need at least 5 classes, got 3"),
        ([4] * 3, {"tasks": 0}, "tasks must be >= 1, got 0"),
        ([4] * 3, {"tasks": [1, 1]}, r"tasks=\[1, 1\] must be sizes >= 1 that add up to the 3 classes"),
        ([4] * 3, {"tasks": [3, 0]}, r"tasks=\[3, 0\]"),
        ([4] * 3, {"tasks": []}, r"tasks=\[\]"),
        ([4] * 3, {"tasks": 1, "test_share": 0.0}, "test_share must lie between 0 and 1, got 0.0"),
        ([4] * 3, {"tasks": 1, "test_share": 1.0}, "got 1.0"),
        ([4] * 2, {"tasks": 1, "test": make([2] * 2, names=["c0", "x"])}, "same class names"),
        ([4, 4], {"tasks": 2, "test": make([0, 2])}, "task 'c0' has no queries"),
        ([4, 0], {"tasks": 1, "test": make([2, 2])}, "queries, but nothing to learn from, for class 'c1'"),
    ],
)
def test_a_split_that_cannot_work_says_why(counts, options, message):
    options = dict(options)
    with pytest.raises(ValueError, match=message):
        split_by_class(make(counts), options.pop("test", None), **options)


def test_unknown_groups_are_named_with_a_suggestion():
    data = make([4] * 2, groups=["Greek", "Latin"])
    with pytest.raises(ValueError, match=r"no group 'Grek' \(did you mean 'Greek'"):
        split_by_group(data, groups=["Grek"])
    with pytest.raises(ValueError, match=r"no group 'zzz' \(known: Greek, Latin"):
        split_by_group(data, groups=["zzz"])
    with pytest.raises(ValueError, match="each group can be named once"):
        split_by_group(data, groups=["Greek", "Greek"])
    with pytest.raises(ValueError, match="3 tasks need at least 3 groups, got 2"):
        split_by_group(data, tasks=3)
    with pytest.raises(ValueError, match="no groups"):
        split_by_group(make([4] * 2))
    with pytest.raises(ValueError, match="'Greek' cannot be chosen"):
        make_stream(Source(make([4] * 5)), groups=["Greek"])


def test_groups_come_in_the_order_of_their_names_whatever_their_classes_are_called():
    data = make([4, 4, 4, 4], groups=["2", "10", "2", "1"])
    assert [task.name for task in split_by_group(data)] == ["1", "2", "10"]


def test_a_task_without_gallery_is_refused_before_anything_is_learned():
    data = make([4, 4])
    with pytest.raises(ValueError, match="nothing to search"):
        split_by_class(data, data, tasks=2, gallery=data.of_classes([0]))


def test_a_fingerprint_tells_whether_samples_changed():
    one, same = (split_by_class(make([6, 6]), tasks=2)[0] for _ in range(2))
    other = split_by_class(make([6, 6]), tasks=2, split_seed=1)[0]
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)


def test_make_stream_follows_the_groups_where_there_are_some():
    assert len(make_stream(Source(make([4] * 10)))) == 5
    grouped = make([4] * 4, groups=["x", "x", "y", "y"])
    assert [task.name for task in make_stream(Source(grouped))] == ["x", "y"]
    assert [task.name for task in make_stream(Source(grouped), groups=["y"])] == ["y"]
    with pytest.raises(ValueError, match="5 tasks need at least 5 classes, got 3"):
        make_stream(Source(make([4] * 3)))
    with_parts = make_stream(Source(make([2] * 2), make([1] * 2), make([3] * 2)), tasks=1)[0]
    assert (len(with_parts.train), len(with_parts.query)) == (4, 2)
    assert with_parts.gallery is not None
    assert len(with_parts.gallery) == 6


def test_groups_have_the_order_of_the_source_unless_another_is_named():
    source = Source(make([4] * 3, groups=["x", "y", "z"]), group_order=("z", "x", "y"))
    assert [task.name for task in make_stream(source)] == ["z", "x", "y"]
    assert [task.name for task in make_stream(source, tasks=[2, 1])] == ["z+x", "y"]
    assert [task.name for task in make_stream(source, groups=["y", "z"])] == ["y", "z"]


def test_options_of_the_split_reach_the_stream():
    source = Source(make([20] * 4), make([6] * 4), make([3] * 4))
    limited = make_stream(source, tasks=2, per_class=5)
    assert [(len(task.train), len(task.query)) for task in limited] == [(10, 10)] * 2
    checked = make_stream(source, tasks=2, validation=True, test_share=0.25)
    assert [(len(task.train), len(task.query), task.gallery) for task in checked] == [(30, 10, None)] * 2
    assert fingerprint(make_stream(source, tasks=2, per_class=5, split_seed=1)[0]) != fingerprint(limited[0])


def image_source() -> Source:
    image = torch.zeros(1, 8, 8)
    image[0, 0, 0] = 1.0  # a corner that a flip moves and a crop may remove
    return Source(LabelledDataset(image.repeat(8, 1, 1, 1), torch.arange(8) // 4, ["a", "b"]))


def test_flips_and_crops_follow_the_global_seed():
    def seen(augment):
        task = make_stream(image_source(), tasks=1, augment=augment)[0]
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
        make_stream(image_source(), tasks=1, augment="rotate")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="needs images"):
        make_stream(Source(make([4] * 2)), tasks=1, augment="flip")


def test_unseen_classes_are_the_last_and_in_no_task():
    source = Source(make([6] * 6))
    stream, unseen = make_stream(source, tasks=2, unseen=2), make_unseen(source, unseen=2)
    assert [task.classes for task in stream] == [(0, 1), (2, 3)]
    assert (unseen.name, unseen.classes) == ("unseen", (4, 5))
    # their queries are those that a stream would draw: nothing depends on which classes are left out
    with_all = make_stream(source, tasks=3)
    assert contents(unseen.query) == contents(with_all[2].query)
    assert contents(stream[0].query) == contents(with_all[0].query)


def test_unseen_groups_and_their_order():
    source = Source(make([4] * 6, groups=["x", "x", "y", "y", "z", "z"]))
    for seed in (None, 1, 2):
        stream = make_stream(source, unseen=1, order_seed=seed)
        unseen = make_unseen(source, unseen=1, order_seed=seed)
        assert len(stream) == 2
        assert sorted([*unseen.classes, *(label for task in stream for label in task.classes)]) == list(range(6))


@pytest.mark.parametrize("count", [-1, 3])
def test_something_must_be_left_to_learn(count):
    with pytest.raises(ValueError, match=f"leave something of 3 classes or groups, got {count}"):
        make_stream(Source(make([4] * 3)), unseen=count)
