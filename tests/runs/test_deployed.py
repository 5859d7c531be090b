"""Models by the names that a user gives them: each embeds as whoever made it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tripletmas.basics.weights import state_of, weight_hash
from tripletmas.cli.main import main
from tripletmas.data.images import ImageFiles, find_images
from tripletmas.runs.deployed import OF_NO_RUN, load_deployed
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.models import embed_images, embed_texts, load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_images) -> Path:
    """A folder with images, a run that has learned two tasks of them, and the last model of it exported."""
    folder = tmp_path_factory.mktemp("deployed")
    for number, name in enumerate(("one", "other", "third", "last")):
        write_images(folder / "images" / name, seed=number)
    data = ["--data", "folder", "--data.root", str(folder / "images"), "--data.size", "8", "--data.channels", "1"]
    model = ["--data.tasks", "2", "--model", "mlp", "--model.hidden", "[16]", "--model.dim", "8"]
    train = ["train", "--out", str(folder / "run"), "--strategy", "finetune", "--report", "false"]
    assert main([*train, "--training.epochs", "1", *data, *model]) == 0
    assert main(["export", str(folder / "run"), "--pretrained", str(folder / "exported")]) == 0
    return folder


@pytest.mark.slow
def test_a_run_and_what_was_exported_of_it_are_one_model(folder: Path):
    of_run, exported = load_deployed(folder / "run"), load_deployed(folder / "exported")
    assert of_run.hash == exported.hash == load_model(RunDirectory.open(folder / "run")).hash
    assert (of_run.after_task, exported.after_task) == (1, OF_NO_RUN)
    assert of_run.shown == exported.shown
    assert not of_run.model.training
    images = ImageFiles(folder / "images", find_images(folder / "images"), of_run.prepared)
    assert torch.equal(embed_images(of_run, images)[0], embed_images(exported, images)[0])


@pytest.mark.slow
def test_a_run_before_its_last_task(folder: Path):
    first = load_deployed(folder / "run", after=0)
    assert first.after_task == 0
    assert first.hash != load_deployed(folder / "run").hash


@pytest.mark.parametrize(("name", "dim"), [("timm:test_resnet", 96), ("squeezenet1_1", 512)])
def test_a_library_with_a_file_of_weights(name: str, dim: int, tmp_path: Path, write_images):
    """Embeds what the classifier would see, of images that are prepared as the library says, at the size given."""
    import timm
    import torchvision

    torch.manual_seed(0)
    whole: Any = timm.create_model("test_resnet") if name.startswith("timm:") else torchvision.models.squeezenet1_1()
    torch.save(whole.state_dict(), tmp_path / "weights.pt")
    found = load_deployed(name, weights=tmp_path / "weights.pt", size=64)
    assert found.prepared.size == (64, 64)
    assert found.prepared.channels == 3
    assert found.dim == dim
    assert found.mean is not None
    assert found.mean == pytest.approx([0.485, 0.456, 0.406] if dim == 512 else [0.5] * 3)
    images = ImageFiles(write_images(tmp_path / "images"), [f"{number}.png" for number in range(3)], found.prepared)
    vectors, _ = embed_images(found, images)
    mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in (found.mean, found.deviation))
    seen = torch.stack([(image / 255 - mean) / deviation for image in (images[number] for number in range(3))])
    with torch.no_grad():
        maps = whole.eval().forward_features(seen) if dim == 96 else whole.eval().features(seen)
    torch.testing.assert_close(vectors, maps.mean(dim=(2, 3)), atol=1e-5, rtol=1e-5)
    assert found.run == f"{name}?weights={tmp_path}/weights.pt&size=64x64"
    again = load_deployed(found.run)
    assert (again.run, again.hash, again.prepared) == (found.run, found.hash, found.prepared)
    with pytest.raises(ValueError, match="not 'wights'"):
        load_deployed(f"{name}?wights=x")


def test_the_size_of_a_library_is_that_of_its_weights(tmp_path: Path):
    import torchvision

    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "weights.pt")
    found = load_deployed("squeezenet1_1", weights=tmp_path / "weights.pt").prepared
    assert (found.size, found.crop) == ((224, 224), 0.875)


def test_a_sentence_encoder_in_a_folder_needs_no_prefix(tiny_encoder: Path):
    one, other = load_deployed(tiny_encoder), load_deployed(f"sentence-transformers:{tiny_encoder}")
    assert one.hash == other.hash
    assert one.dim == 16
    assert one.after_task == OF_NO_RUN
    texts = ["my card is lost", "where is the parcel ?"]
    assert torch.equal(embed_texts(one, texts), embed_texts(other, texts))


def test_the_hash_is_that_of_the_weights(tmp_path: Path):
    import torchvision

    files = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        files.append(tmp_path / f"{seed}.pt")
        torch.save(torchvision.models.squeezenet1_1().state_dict(), files[-1])
    models = [load_deployed("squeezenet1_1", weights=file) for file in (*files, files[0])]
    assert models[0].hash == models[2].hash != models[1].hash
    inner: nn.Module = models[0].model
    assert models[0].hash == weight_hash(state_of(inner))


def test_what_is_no_model_of_anybodys(folder: Path, tiny_encoder: Path, tmp_path: Path):
    for name in ("runs/none", "conv4", "net.py:Net"):
        with pytest.raises(ValueError, match=f"{name} is no model that has learned anything: name a run"):
            load_deployed(name)
    with pytest.raises(ValueError, match=r"unknown model 'resnet81'.*did you mean 'resnet18'"):
        load_deployed("resnet81")
    with pytest.raises(ValueError, match="no exported model: it has no"):
        load_deployed(folder / "images")
    with pytest.raises(ValueError, match=r"--old-after is not for this model: a task is of a run, and .*exported is"):
        load_deployed(folder / "exported", after=0, option="--old-")
    with pytest.raises(ValueError, match=r"--new-weights is not for this model: .*run is a run, which has its own"):
        load_deployed(folder / "run", weights="file.pt", option="--new-")
    with pytest.raises(ValueError, match=r"--new-size is not for this model: .* has its own"):
        load_deployed(tiny_encoder, size=96, option="--new-")
    with pytest.raises(ValueError, match=r"none\.pt"):
        load_deployed("squeezenet1_1", weights=tmp_path / "none.pt")
