"""Several data sets, one after the other: order, names, one size and channel count, test parts."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from tiny_datasets import cars, clothes, cub, flowers, house_numbers, omniglot_tree, picture, planes

from tripletmas.data import images, sequences
from tripletmas.data.dataset import LabelledDataset, concatenate
from tripletmas.data.sequences import READERS, Joined, fitted, sequence
from tripletmas.data.source import Source
from tripletmas.data.tasks import Stream, fingerprint, make_stream
from tripletmas.runs import catalog, configuration
from tripletmas.runs.options import TrainConfig

FILE = Path(__file__).resolve().parents[2] / "datasets" / "recogseq" / "mas.yaml"


def patches(channels: int, *, values: str = "bytes"):
    """A reader of 2 classes of 6 images, 8 x 12, in memory."""
    generator = torch.Generator().manual_seed(channels)
    images = torch.randint(0, 256, (12, channels, 8, 12), generator=generator, dtype=torch.uint8)
    samples = images if values == "bytes" else images / 255
    return lambda: Source(LabelledDataset(samples, torch.arange(12) // 6, ["first", "second"]))


@pytest.fixture
def readers(monkeypatch, tmp_path):
    """`grey` and `colour` in memory, beside the real readers."""
    monkeypatch.setitem(READERS, "grey", patches(1, values="floats"))
    monkeypatch.setitem(READERS, "colour", patches(3))
    monkeypatch.setitem(READERS, "rows", lambda: Source(LabelledDataset(torch.zeros(8, 5), torch.arange(8) // 4, "ab")))
    return tmp_path


def test_parts_are_tasks_in_the_order_given(readers):
    clothes(readers)
    omniglot_tree(readers)
    stream, _ = make_stream(sequence(parts=["grey", "omniglot", "fashion-mnist", "digits"], root=str(readers), size=10))
    assert [task.name for task in stream] == ["grey", "omniglot", "fashion-mnist", "digits"]
    names = stream[0].train.class_names
    assert [names[label] for label in stream[0].classes] == ["grey/first", "grey/second"]
    assert [names[label] for label in stream[1].classes[:2]] == [
        "omniglot/Greek/character01",
        "omniglot/Greek/character02",
    ]
    assert [len(task.classes) for task in stream] == [2, 4, 10, 10]
    samples = stream[0].train.samples
    assert isinstance(samples, torch.Tensor)
    assert (samples.dtype, samples.shape[1:]) == (torch.uint8, (1, 10, 10))
    assert all(part.samples is samples for task in stream for part in (task.train, task.query))
    joint = concatenate([task.train for task in stream])
    assert joint[[0, len(joint) - 1]][0].shape == (2, 1, 10, 10)
    # Fashion-MNIST's test part are the queries: grey level 10 * class + 0 or 1
    query = stream[2].query
    levels = (torch.stack([query[i][0] for i in range(len(query))]).mean(dim=(1, 2, 3)) * 255).round().int().tolist()
    assert levels == [10 * label + i for label in range(10) for i in range(2)]
    assert len(stream[2].train) == 40
    # others hold out a share of each class: 30 % of 6, at least 2
    assert (len(stream[0].train), len(stream[0].query)) == (8, 4)
    assert len(stream[3].train) + len(stream[3].query) == 1797
    assert len(stream[3].query) == pytest.approx(0.3 * 1797, abs=5)  # half a sample for each of 10 classes
    half, _ = make_stream(sequence(parts=["fashion-mnist", "grey"], root=str(readers)), test_share=0.5)
    assert [(len(task.train), len(task.query)) for task in half] == [(40, 20), (6, 6)]


def test_parts_keep_their_samples_and_fingerprints_when_others_come_after_them(readers):
    clothes(readers)
    omniglot_tree(readers)
    short, _ = make_stream(sequence(parts=["grey", "omniglot"], root=str(readers)))
    long, _ = make_stream(sequence(parts=["grey", "omniglot", "fashion-mnist", "digits"], root=str(readers)))
    assert [fingerprint(task) for task in short] == [fingerprint(task) for task in long[:2]]
    assert len({fingerprint(task) for task in long}) == 4
    assert short[1].train.paths is not None
    assert short[1].train.paths[0].endswith(".png")
    assert short[0].train.paths is not None
    assert set(short[0].train.paths) <= {f"grey[{index}]" for index in range(12)}
    assert torch.equal(short[0].train[[0, 7]][0], long[0].train[[0, 7]][0])


def test_validation_leaves_every_test_part_alone(readers):
    clothes(readers)
    source = sequence(parts=["fashion-mnist", "grey", "digits"], root=str(readers))
    stream, checked = make_stream(source)[0], make_stream(source, validation=True)[0]
    for task, chosen in zip(stream, checked, strict=True):
        learned, asked = set(chosen.train.indices.tolist()), set(chosen.query.indices.tolist())
        assert learned | asked == set(task.train.indices.tolist())
        assert not learned & asked
        assert asked
        assert not asked & set(task.query.indices.tolist())


def test_what_is_too_large_is_converted_when_it_is_read(readers, monkeypatch):
    ready = sequence(parts=["grey", "colour"], channels=3, size=6).train
    assert isinstance(ready.samples, torch.Tensor)
    monkeypatch.setattr(sequences, "IN_MEMORY_BYTES", 100)
    lazy = sequence(parts=["grey", "colour"], channels=3, size=6).train
    assert isinstance(lazy.samples, Joined)
    assert len(lazy) == len(ready) == 24
    for dataset in (lazy, pickle.loads(pickle.dumps(lazy))):
        everything = list(range(24))
        assert torch.equal(dataset[everything][0], ready[everything][0])
        assert torch.equal(dataset[everything][1], ready[everything][1])
    with pytest.raises(IndexError, match="24 images, no number 24"):
        lazy.samples[24]
    # images of the right shape already, too many: they stay where they are
    same = sequence(parts=[{"name": "colour", "as": "a"}], size=8).train
    assert isinstance(same.samples, Joined)


def test_files_stay_files(readers, monkeypatch):
    for split, count in (("train", 4), ("test", 2)):
        for name in "ab":
            for number in range(count):
                picture(readers / "shop" / split / name / f"{number}.png", 10 * number)
    part = {"name": "folder", "as": "shop", "root": str(readers / "shop"), "in_memory": False}
    stream, _ = make_stream(sequence(parts=["grey", part], size=6, channels=1))
    assert isinstance(stream[0].train.samples, Joined)
    assert stream[1].train.sample_shape == (1, 6, 6)
    assert [round(float(stream[1].query[i][0].mean()) * 255) for i in range(4)] == [0, 10, 0, 10]
    assert stream[1].query.paths == tuple(str(readers / f"shop/test/{name}/{i}.png") for name in "ab" for i in range(2))


def test_a_data_set_twice_has_two_names(readers):
    source = sequence(parts=["grey", {"name": "grey", "as": "again"}])
    assert [task.name for task in make_stream(source)[0]] == ["grey", "again"]
    assert source.train.class_names == ("grey/first", "grey/second", "again/first", "again/second")
    with pytest.raises(
        ValueError, match=r"two parts are called 'grey': give one another name, \{name: grey, as: \.\.\.\}"
    ):
        sequence(parts=["grey", "digits", {"name": "grey"}])


def test_some_groups_of_a_part(readers):
    omniglot_tree(readers)
    part = {"name": "omniglot", "groups": ["Latin"], "root": str(readers)}
    stream, _ = make_stream(sequence(parts=[part, "grey"]))
    names = stream[0].train.class_names
    assert [names[label] for label in stream[0].classes] == ["omniglot/Latin/character01", "omniglot/Latin/character02"]
    assert len(stream[0].train) + len(stream[0].query) == 8
    with pytest.raises(ValueError, match=r"part 'omniglot' has no group 'Latn' \(did you mean 'Latin'\?\)"):
        sequence(parts=[{**part, "groups": ["Latn"]}])


def test_size_root_and_download_reach_the_parts_that_take_them(monkeypatch):
    given = {}

    def reader(name: str):
        def public(*, root: str = "data", size: int = 224, download: bool = False) -> Source:
            given[name] = (root, size, download)
            return patches(1)()

        return public

    monkeypatch.setitem(READERS, "one", reader("one"))
    monkeypatch.setitem(READERS, "two", reader("two"))
    own = {"name": "two", "root": "elsewhere", "size": 50, "download": False}
    sequence(parts=["one", own], root="here", size=9, download=True)
    assert given == {"one": ("here", 9, True), "two": ("elsewhere", 50, False)}


def test_grey_becomes_colour_and_colour_grey():
    colour = torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    # ITU-R 601: 0.2989 * 200 + 0.587 * 100 + 0.114 * 50 = 124.18
    assert fitted(colour, 4, 1).unique().tolist() == [124]
    assert fitted(colour, 4, 1).shape == (1, 1, 4, 4)
    grey = torch.arange(16, dtype=torch.uint8).view(1, 4, 4)
    assert torch.equal(fitted(grey, 4, 3), torch.stack([grey[0]] * 3))
    assert torch.equal(fitted(grey / 255, 4, 1), grey)
    assert fitted(torch.full((1, 2, 2), 1 / 16), 2, 1).unique().tolist() == [16]  # 255 / 16 = 15.94


def test_the_short_side_is_resized_and_the_centre_square_cut_out():
    image = torch.zeros(1, 8, 16, dtype=torch.uint8)
    image[..., 4:12] = 200  # the centre square
    assert fitted(image, 8, 1).unique().tolist() == [200]
    assert fitted(image.transpose(1, 2), 8, 1).unique().tolist() == [200]
    assert fitted(image, 4, 1).shape == (1, 4, 4)
    assert fitted(image, 20, 3).shape == (3, 20, 20)
    lines = torch.zeros(1, 32, 32)
    lines[..., ::8] = 200 / 255
    # antialiased, a line of 1 pixel in 8 leaves its share, 200 / 8; without, samples between the lines would miss it
    assert fitted(lines, 4, 1)[..., 1:-1].unique().tolist() == [25]
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\], got 0 to 2"):
        fitted(torch.tensor([[[0.0, 2.0]]]), 4, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": []}, "parts must name at least one data set"),
        ({"parts": ["digit"]}, r"unknown part 'digit' \(did you mean 'digits'\?\)"),
        ({"parts": ["sequence"]}, "unknown part 'sequence'"),
        ({"parts": [{"as": "x"}]}, "a part is a name or a mapping with the key 'name', got {'as': 'x'}"),
        (
            {"parts": [{"name": "fashion-mnist", "rot": "x"}]},
            r"part 'fashion-mnist' has no option 'rot' \(did you mean 'root'\?\)",
        ),
        (
            {"parts": [{"name": "digits", "as": "ten", "size": 3}]},
            r"part 'ten' has no option 'size' \(known: as, groups\)",
        ),
        (
            {"parts": [{"name": "digits", "groups": ["x"]}]},
            "part 'digits' has no groups of classes, so groups x cannot be chosen",
        ),
        ({"parts": [{"name": "digits", "groups": "x"}]}, "part 'digits': groups must be a list of names, got 'x'"),
        ({"parts": ["folder"]}, r"part 'folder' needs the option 'root': \{name: folder, root: \.\.\.\}"),
        (
            {"parts": ["grey", "colour", "digits"]},
            r"different channel counts \(grey 1, colour 3, digits 1\): set channels to 1 or 3",
        ),
        ({"parts": ["rows"]}, r"part 'rows' has samples of shape \(5,\); a sequence needs images"),
        ({"parts": ["digits"], "channels": 2}, r"channels must be 1 \(grey\) or 3 \(RGB\), got 2"),
        ({"parts": ["digits"], "size": 0}, "size must be >= 1 pixel, got 0"),
    ],
)
def test_what_a_caller_can_get_wrong(readers, options, message):
    with pytest.raises(ValueError, match=message):
        sequence(**options)


def test_a_gallery_in_some_parts_only_is_refused(readers, monkeypatch):
    whole = patches(1)().train
    with_gallery = Source(whole.subset(range(0, 12, 3)), whole.subset(range(1, 12, 3)), whole.subset(range(2, 12, 3)))
    monkeypatch.setitem(READERS, "shop", lambda: with_gallery)
    with pytest.raises(ValueError, match="all parts or none must have a gallery, but of them shop have one"):
        sequence(parts=["grey", "shop"])
    source = sequence(parts=["shop", {"name": "shop", "as": "again"}])
    assert len(source.train.samples) == 24  # what the parts of a set share is there once
    stream, _ = make_stream(source)
    assert [None if task.gallery is None else len(task.gallery) for task in stream] == [4, 4]


def test_the_command_line_and_yaml_name_parts(readers, tmp_path):
    clothes(tmp_path)
    line = ["--data", "sequence", "--data.parts", "[digits, {name: fashion-mnist, as: clothes}]"]
    config, _ = configuration.parse([*line, "--data.root", str(tmp_path), "--data.per_class", "3"])
    file = tmp_path / "run.yaml"
    parts = "[digits, {name: fashion-mnist, as: clothes}]"
    file.write_text(f"data: {{name: sequence, parts: {parts}, root: {tmp_path}, per_class: 3}}\n")
    assert configuration.parse(["--config", str(file)])[0] == config == configuration.resolve(config)
    data = {key: value for key, value in config["data"].items() if key != "name"}
    stream = catalog.build_data("sequence", data).stream
    assert [(task.name, len(task.train), len(task.query)) for task in stream] == [
        ("digits", 30, 30),
        ("clothes", 30, 20),
    ]


# --- the eight recognition tasks of the MAS paper, read whole from tiny copies in their layouts


def folders(root: Path, classes: str, *, ending: str) -> None:
    """3 images of each class to learn from, 2 to ask for."""
    for split, count in (("train", 3), ("test", 2)):
        for name in classes:
            for number in range(count):
                picture(root / split / name / f"{number}.{ending}", 10 * number, mode="L" if number else "RGB")


@pytest.fixture
def configured(tmp_path, monkeypatch) -> dict:
    """The configuration, where its data lie where it says."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    flowers(data)
    folders(data / "scenes", "pq", ending="jpg")
    cub(data)
    cars(data / "cars196")
    planes(data)
    folders(data / "actions", "rst", ending="jpg")
    folders(data / "letters", "uvwx", ending="png")
    house_numbers(data / "svhn", monkeypatch)
    return configuration.parse(["--config", str(FILE), "--data.size", "8"])[0]


def stream_of(configured: dict) -> Stream:
    return catalog.build_data("sequence", {key: v for key, v in configured["data"].items() if key != "name"}).stream


def test_all_eight_tasks_in_the_papers_order(configured):
    stream = stream_of(configured)
    # of birds and cars 30 % of each class's 4, which is 2 at least, are asked for; of others the published test part
    counts = {
        "flowers102": (3, 6, 3), "scenes": (2, 6, 4), "cub200": (2, 4, 4), "cars196": (2, 4, 4),
        "aircraft": (2, 4, 2), "actions": (3, 9, 6), "letters": (4, 12, 8), "svhn": (10, 20, 10),
    }  # fmt: skip
    found = {task.name: (len(task.classes), len(task.train), len(task.query)) for task in stream}
    assert (found, list(found)) == (counts, list(counts))
    samples = stream[0].train.samples
    for task in stream:
        for part in (task.train, task.query):
            assert part.samples is samples
            assert part.sample_shape == (3, 8, 8)
            batch, labels = part[list(range(len(part)))]
            assert batch.isfinite().all()
            assert set(labels.tolist()) == set(task.classes)
    assert stream[7].train.class_names[stream[7].classes[0]] == "svhn/0"
    red = stream[7].query[[0]][0][0, 0]
    assert (red * 255).unique().tolist() == pytest.approx([1.0])  # the first test image shows a 1


def test_large_parts_are_read_when_they_are_asked_for(configured, monkeypatch):
    ready = stream_of(configured)
    for module in (images, sequences):
        monkeypatch.setattr(module, "IN_MEMORY_BYTES", 100)
    lazy = stream_of(configured)
    assert isinstance(ready[0].train.samples, torch.Tensor)
    assert isinstance(lazy[0].train.samples, Joined)
    for one, other in zip(ready, lazy, strict=True):
        everything = list(range(len(one.train)))
        assert torch.equal(one.train[everything][0], other.train[everything][0])


def test_the_rest_is_what_the_card_says(configured):
    assert configured["objective"] == "recognition"
    model = {"name": "alexnet", "pretrained": True, "dim": 0}
    assert model.items() <= configured["model"].items()
    strategy = {"name": "mas", "strength": 1.0, "relative": False, "output": "logits"}
    assert strategy.items() <= configured["strategy"].items()
    training = TrainConfig(**configured["training"])
    assert (training.optimizer, training.momentum, training.lr, training.weight_decay) == ("sgd", 0.9, 8e-4, 0.0)
    assert (training.epochs, training.batch_size, training.sampler) == (100, 200, "shuffled")
    assert (training.schedule, training.step_at) == ("step", 0.54)
