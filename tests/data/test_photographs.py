"""Public sets of photographs, from tiny copies in their layout on disk."""

from __future__ import annotations

import pytest
from pytorch_metric_learning.datasets import CUB
from tiny_datasets import cars, cub, flowers, planes, products

from tripletmas.data import photographs


@pytest.mark.parametrize("below", ["", "cub200"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_cub_with_both_halves_of_its_classes(tmp_path, caplog, below, in_memory):
    cub(tmp_path / below)
    train = photographs.cub200(root=str(tmp_path), size=4, in_memory=in_memory).train
    assert train.class_names == ("001.Albatross", "150.Wren")
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    assert train[[0, 5]][0].shape == (2, 3, 4, 4)  # grey photographs become RGB
    assert float(train[5][0].mean()) * 255 == pytest.approx(5)
    assert "lists 8 images, the whole set has 11788" in caplog.text


def test_a_photograph_that_a_list_names_must_exist(tmp_path):
    cub(tmp_path)
    (tmp_path / "CUB_200_2011" / "images" / "150.Wren" / "5.png").unlink()
    for in_memory in (True, False):
        with pytest.raises(ValueError, match=r"150\.Wren/5\.png cannot be read: no such file"):
            photographs.cub200(root=str(tmp_path), in_memory=in_memory)
    (tmp_path / "CUB_200_2011" / "image_class_labels.txt").unlink()
    with pytest.raises(ValueError, match=r"the lists in .* cannot be read"):
        photographs.cub200(root=str(tmp_path))


def test_a_download_counts_only_when_it_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(CUB, "download_and_remove", lambda self: (_ for _ in ()).throw(EOFError("cut short")))
    (tmp_path / "cub200.partial").mkdir()  # left by a download that was killed
    (tmp_path / "cub200.partial" / "junk").touch()
    with pytest.raises(OSError, match=r"^cub200: the download into .* failed \(cut short\)"):
        photographs.cub200(root=str(tmp_path), download=True)
    assert not (tmp_path / "cub200").exists()

    def fetch(self):
        assert not (tmp_path / "cub200.partial" / "junk").exists()
        cub(tmp_path / "cub200.partial")

    monkeypatch.setattr(CUB, "download_and_remove", fetch)
    assert len(photographs.cub200(root=str(tmp_path), download=True, size=4).train) == 8
    assert not (tmp_path / "cub200.partial").exists()
    monkeypatch.setattr(CUB, "download_and_remove", lambda self: pytest.fail("fetched what is there"))
    assert len(photographs.cub200(root=str(tmp_path), download=True, size=4).train) == 8


def test_a_folder_with_something_else_is_not_downloaded_into(tmp_path, monkeypatch):
    monkeypatch.setattr(CUB, "download_and_remove", lambda self: pytest.fail("fetched for nothing"))
    (tmp_path / "cub200").mkdir()
    (tmp_path / "cub200" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"cub200 has no CUB_200_2011/images\.txt; complete it, or delete"):
        photographs.cub200(root=str(tmp_path), download=True)


def test_cars(tmp_path):
    cars(tmp_path)
    train = photographs.cars196(root=str(tmp_path), size=4).train
    assert train.class_names == ("Audi A-B 2012", "BMW X5 2007")
    assert train.labels.tolist() == [0, 0, 1, 1] * 2


def test_products_are_grouped_by_kind_and_small_ones_left_out(tmp_path, caplog):
    products(tmp_path)
    train = photographs.sop(root=str(tmp_path), size=4).train
    assert train.class_names == ("bicycle/1", "chair/3")
    assert train.groups == ("bicycle", "chair")
    assert train.labels.bincount().tolist() == [4, 5]
    assert "left out 1 products with fewer than 4 images" in caplog.text
    assert len(photographs.sop(root=str(tmp_path), size=4, min_images=2).train) == 12
    with pytest.raises(ValueError, match="min_images=9"):
        photographs.sop(root=str(tmp_path), min_images=9)


def grey(dataset) -> list[int]:
    """The grey level of each image, to the nearest ten."""
    return [10 * round(float(image.mean()) * 25.5) for image, _ in (dataset[i] for i in range(len(dataset)))]


@pytest.mark.parametrize("in_memory", [True, False])
def test_flowers_train_on_two_published_parts_and_test_on_the_third(tmp_path, caplog, in_memory):
    flowers(tmp_path)
    source = photographs.flowers102(root=str(tmp_path), size=4, in_memory=in_memory)
    assert source.test is not None
    assert source.train.class_names == source.test.class_names == ("1", "2", "3")
    assert grey(source.train) == [10, 20, 30, 40, 50, 60]
    assert source.train.labels.tolist() == [1, 2, 0] * 2  # image 1 shows class 2, which is label 1
    assert grey(source.test) == [70, 80, 90]
    assert source.test.labels.tolist() == [1, 2, 0]
    assert source.train[0][0].shape == (3, 4, 4)
    assert "flowers-102 lists 9 images, the whole set has 8189" in caplog.text
    (tmp_path / "flowers-102" / "setid.mat").write_bytes(b"no matrix")
    with pytest.raises(ValueError, match="flowers102: no complete lists in"):
        photographs.flowers102(root=str(tmp_path))


def test_aircraft_by_variant(tmp_path, caplog):
    planes(tmp_path)
    source = photographs.aircraft(root=str(tmp_path), size=4)
    assert source.test is not None
    assert source.train.class_names == ("707-320", "F/A-18")
    assert grey(source.train) == [0, 10, 20, 30]
    assert source.train.labels.tolist() == [0, 1, 0, 1]
    assert grey(source.test) == [40, 50]
    assert source.test.labels.tolist() == [0, 1]
    assert "data lists 6 images, the whole set has 10000" in caplog.text
    (tmp_path / "fgvc-aircraft-2013b" / "data" / "images_variant_test.txt").write_text("0000004\n")
    with pytest.raises(ValueError, match=r"aircraft: no list of images .*images_variant_test\.txt"):
        photographs.aircraft(root=str(tmp_path))
