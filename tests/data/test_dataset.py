"""LabelledDataset: views, batches and labels; encode_labels."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import pytest
import torch

from tripletmas.data.dataset import LabelledDataset, concatenate
from tripletmas.data.names import encode_labels

NAMES = ("a", "b", "c")
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


class Counted(Sequence[torch.Tensor]):
    """A sequence of images that counts how often one is read."""

    def __init__(self, num: int):
        self.num = num
        self.reads = 0

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - no slices
        self.reads += 1
        return torch.full((1, 2, 2), index, dtype=torch.uint8)


def make(**options) -> LabelledDataset:
    return LabelledDataset(torch.arange(6.0).reshape(6, 1), LABELS, NAMES, **options)


def test_a_batch_is_its_samples_in_the_order_asked_for():
    samples, labels = make()[[4, 0]]
    assert samples.tolist() == [[4.0], [0.0]]
    assert labels.tolist() == [1, 0]


def test_bytes_are_scaled_to_the_unit_interval():
    dataset = LabelledDataset(torch.tensor([[0], [51], [255]], dtype=torch.uint8), torch.zeros(3), ("a",))
    assert dataset[[0, 1, 2]][0].flatten().tolist() == pytest.approx([0.0, 0.2, 1.0])
    assert dataset[1][0].item() == pytest.approx(0.2)


def test_labels_are_read_without_reading_a_sample():
    samples = Counted(6)
    dataset = LabelledDataset(samples, LABELS, NAMES)
    assert dataset.of_classes([1]).labels.tolist() == [1, 1]
    assert dataset.classes == (0, 1, 2)
    assert samples.reads == 0
    dataset.of_classes([1])[[0, 1]]
    assert samples.reads == 2


def test_a_view_of_a_view_keeps_names_groups_and_paths():
    dataset = make(groups=("x", "x", "y"), paths=[f"{i}.png" for i in range(6)])
    view = dataset.of_classes([0, 2]).subset([1, 2])
    assert view.paths == ("2.png", "3.png")
    assert view.labels.tolist() == [2, 0]
    assert view.class_names == NAMES
    assert view.groups == ("x", "x", "y")
    assert view.samples is dataset.samples


def test_plain_is_the_view_without_augmentation():
    dataset = make().with_transform(lambda sample: sample + 100)
    assert dataset[[0]][0].item() == 100
    assert dataset[0][0].item() == 100
    assert dataset.subset([1])[[0]][0].item() == 101
    assert dataset.plain()[[0]][0].item() == 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_gives_every_sample_once_in_order(num_workers):
    batches = list(make().loader(4, num_workers=num_workers))
    assert [len(labels) for _, labels in batches] == [4, 2]
    assert torch.cat([samples for samples, _ in batches]).flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_a_loader_gives_the_batches_that_were_drawn():
    loader = make().loader(batches=[[5, 0], [1]])
    assert len(loader) == 2
    assert [samples.flatten().tolist() for samples, _ in loader] == [[5.0, 0.0], [1.0]]


def test_concatenate_joins_views_of_the_same_samples_only():
    dataset = make()
    joined = concatenate([dataset.of_classes([2]), dataset.of_classes([0])])
    assert joined[list(range(4))][0].flatten().tolist() == [2, 5, 0, 3]
    with pytest.raises(ValueError, match="same samples"):
        concatenate([dataset, make()])
    with pytest.raises(ValueError, match="at least one"):
        concatenate([])


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 1], {}, "6 samples, but 2 labels"),
        ([0, 1, 2, 0, 1, 3], {}, r"\[0, 3\)"),
        ([0, 1, 2, 0, 1, -1], {}, r"\[0, 3\)"),
        ([0, 1, 2, 0, 1, 2], {"groups": ["x"]}, "one group for each of the 3 classes"),
    ],
)
def test_parts_that_do_not_fit_are_refused(labels, options, message):
    with pytest.raises(ValueError, match=message):
        LabelledDataset(torch.zeros(6, 1), torch.tensor(labels), NAMES, **options)


def test_an_empty_view_has_no_sample_shape():
    assert make().sample_shape == (1,)
    with pytest.raises(ValueError, match="empty"):
        _ = make().subset([]).sample_shape


def test_it_survives_pickling_as_a_worker_needs():
    copy = pickle.loads(pickle.dumps(make().of_classes([1])))
    assert copy[[0, 1]][0].flatten().tolist() == [1.0, 4.0]


@pytest.mark.parametrize(
    ("names", "class_names"),
    [
        (["10", "9", "10"], ("9", "10")),  # numbers
        (["10", "9", "x"], ("10", "9", "x")),  # text: "1" comes before "9"
        ([str(2**24 + 1), str(2**24), "-1"], ("-1", str(2**24), str(2**24 + 1))),  # equal in float32
        ([str(-(2**53)), str(-(2**53) - 1)], (str(-(2**53) - 1), str(-(2**53)))),  # equal in float64
        (["07", "7"], ("07", "7")),  # one number, two names
        ([str(10**30), "1"], ("1", str(10**30))),  # beyond int64
    ],
)
def test_class_names_are_ordered_as_numbers_or_as_text(names, class_names):
    labels, encoded = encode_labels(names)
    assert encoded == class_names
    assert [encoded[label] for label in labels.tolist()] == names


# --- samples of several classes


def several() -> LabelledDataset:
    truth = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0]]).bool()
    return LabelledDataset(torch.arange(4.0)[:, None], truth, ["a", "b", "c"])


def test_a_view_tells_of_its_classes_only():
    data = several()
    assert data.classes == (0, 1, 2)
    view = data.of_classes([0, 2])
    assert view.indices.tolist() == [0, 2]
    assert view.labels.tolist() == [[True, False, True], [True, False, False]]
    assert view.truth.tolist() == [[True, False, True], [True, True, False]]
    assert view.classes == (0, 2)
    samples, labels = view[[1]]
    assert samples.tolist() == [[2.0]]
    assert labels.tolist() == [[True, False, False]]
    assert view.of_classes([1]).indices.tolist() == []  # it is not about b
    assert view.subset([1]).plain().labels.tolist() == [[True, False, False]]
    assert data.about([1]).indices.tolist() == [0, 1, 2, 3]
    assert data.about([1]).classes == (1,)


def test_a_sample_in_several_views_is_joined_once_with_the_classes_of_all():
    data = several()
    both = concatenate([data.of_classes([2]), data.of_classes([1]), data.of_classes([0])])
    assert both.indices.tolist() == [0, 1, 2]
    assert torch.equal(both.labels, data.truth[:3])


def test_boolean_labels_fit_the_names():
    with pytest.raises(ValueError, match=r"boolean labels must be \(n, 2\), one for each class name"):
        LabelledDataset(torch.zeros(1, 1), torch.ones(1, 3, dtype=torch.bool), ["a", "b"])
