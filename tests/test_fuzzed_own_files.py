"""Files of runs, indexes and protections that say something else than they should: each is read, or refused by name.

Their checksums would refuse nearly all of them; so most are made as earlier versions wrote them, without any.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from fuzzing import Reader, asked_for, bytes_damaged, fuzz, fuzz_quickly, json_damaged, lines_damaged, tensors_damaged
from torch import nn

from tripletmas.basics.arrays import Unclear, read_sealed
from tripletmas.basics.files import read_tensors, save_tensors
from tripletmas.index.changes import add_images
from tripletmas.index.glance import read_glance
from tripletmas.index.images import ImageIndex, Part, Settings, Transform
from tripletmas.protection.protection import MAS, Protection
from tripletmas.protection.structured.gram import Gram
from tripletmas.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tripletmas.runs.directory import RunDirectory
from tripletmas.runs.records import Records

TENSORS = [tensors_damaged, tensors_damaged, bytes_damaged()]
JSON = [json_damaged, json_damaged, bytes_damaged(b"{", b"[", b",", b"null", b"1e999", b'"', b"\xff")]
CHECKPOINT = "checkpoint/task0001-epoch000001"


# --- whole files


def index_file(kind: str) -> bytes:
    with_kind = Settings(
        3, Transform((8, 8), 1), kind=kind, on_disk=kind.startswith("IVF"), nprobe=1 if kind[:3] == "IVF" else None
    )
    vectors = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    names, labels = [f"{number}.png" for number in range(50)], ["a", "b", None, "c", "a"] * 10
    return _saved(
        add_images(ImageIndex.empty(with_kind, run="/r"), vectors, names, labels, Part("m", 0, "m"), root="/r").save
    )


def protection_file(make: Callable[[nn.Module], MAS | Gram]) -> bytes:
    guard = make(model())
    guard.consolidate([torch.randn(8, 4, generator=torch.Generator().manual_seed(0))])
    return _saved(guard.save)


def plain_tensors() -> bytes:
    tensors = {
        "a": torch.arange(6.0).view(2, 3),
        "b": torch.ones(2).half(),
        "c": torch.tensor([True]),
        "d": torch.empty(0),
    }
    return _saved(lambda path: save_tensors(path, tensors, {"x": {"y": [1, None]}}))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def write_checkpoint(folder: Path) -> Path:
    """One of a version that knew no identity: nothing has to be sealed."""
    net = model()
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    state = {name: value.detach() for name, value in net.state_dict().items()}
    steps = {"optimizer": optimizer.state_dict(), "scaler": {}}
    save_checkpoint(folder / "checkpoint", Checkpoint(1, 1, state, state, {"head": torch.ones(2)}, steps))
    return folder / CHECKPOINT


def _saved(save: Callable[[Path], object]) -> bytes:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        save(Path(folder) / "x")
        return (Path(folder) / "x").read_bytes()


RECORDS = (
    b'{"kind": "epoch", "task": 0, "epoch": 0, "seconds": 1.5, "loss": 0.5, "embedding": {"norm": 1.0}, "name": "t"}\n'
    b'{"kind": "task", "task": 0, "name": "t", "scores": {"seen": {"recall@1": [0.5]}}, "files": '
    b'["weights/task00.safetensors"], "drift": [[0.5, null]], "unseen": {"recall@1": 0.1}, "collapse": {"a": "b"}}\n'
    b'{"kind": "ahead", "task": 1, "scores": {"task": {"recall@1": [0.5, null]}}}\n'
    b'{"kind": "search", "task": 1, "chance": 0.1, "finetune": 0.5, "floor": 0.2, "search_seconds": 1, "strength": '
    b'0.5, "trials": [{"strength": 0.5, "score": 0.25}]}\n'
)
SCORES = b'{"task_names": ["a", "b"], "matrices": {"seen": {"recall@1": [[0.5, null], [0.25, 1]]}}, "baseline": {}}'


# --- readers


def read_index(path: Path) -> None:
    """Opened, told of, searched; what is told without torch is the same, or nothing."""
    index = ImageIndex.open(path)
    told = index.glance()
    with suppress(Unclear):
        assert read_glance(path) == told
    index.search(torch.ones(2, index.settings.dim), 3)


def read_plain(path: Path) -> None:
    tensors, header = read_tensors(path, "do so", header="x")
    try:
        arrays, other = read_sealed(path, header="x")
    except Unclear:
        return
    assert repr(other) == repr(header)
    assert {name: each[:2] for name, each in arrays.items()} == {
        name: (str(value.dtype), tuple(value.shape)) for name, value in tensors.items()
    }


def read_held(load: Callable[[Path, nn.Module], MAS | Protection | Gram], path: Path) -> None:
    guard = load(path, model())
    guard.coverage()
    guard.value()


def read_run(path: Path) -> None:
    """All that a run keeps as JSON, under whichever name."""
    from tripletmas.objectives.scores import Scores

    (path.parent / "config.yaml").touch()
    run = RunDirectory(path.parent)
    if (found := run.scores()) is not None:
        try:
            Scores.from_json(found)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None  # as the report says it


def read_records(path: Path) -> None:
    records = Records(path, "")
    records.read()
    records.expected("weights/task00.safetensors")


def checkpoint_reader(name: str, folder: Path) -> Reader:
    written = write_checkpoint(folder)
    damage = {"json": JSON, "safetensors": TENSORS}.get(name.rpartition(".")[2], [bytes_damaged()])

    def read(path: Path) -> None:
        load_checkpoint(path.parents[1])

    return Reader(f"{CHECKPOINT}/{name}", read, [(written / name).read_bytes()], damage)


READERS: dict[str, Callable[[Path], Reader]] = {
    "tensors": lambda _: Reader("x.safetensors", read_plain, [plain_tensors()], TENSORS),
    "index": lambda _: Reader("x.index", read_index, [index_file("exact"), index_file("HNSW4")], TENSORS),
    "index on disk": lambda _: Reader("x.index", read_index, [index_file("IVF2,Flat")], TENSORS),
    "protection": lambda _: Reader("x", partial(read_held, Protection.load), [protection_file(MAS)], TENSORS),
    "gram": lambda _: Reader("x", partial(read_held, Gram.load), [protection_file(Gram)], TENSORS),
    "records": lambda _: Reader(
        "metrics.jsonl", read_records, [RECORDS], [lines_damaged, lines_damaged, bytes_damaged()]
    ),
    "scores": lambda _: Reader("scores.json", read_run, [SCORES], JSON),
    **{
        f"checkpoint {name}": partial(checkpoint_reader, name)
        for name in ("place.json", "model.safetensors", "optimizer.pt")
    },
}


@pytest.mark.filterwarnings("ignore")  # of what is held of a model with other weights
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused(name, tmp_path):
    fuzz(READERS[name](tmp_path), tmp_path, 100)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files_are_read_or_refused(name, tmp_path):
    fuzz_quickly(READERS[name](tmp_path), tmp_path, asked_for())
