"""Embedding a data set: the model in eval mode, whatever the batches, and what is refused."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Tensor, nn

from tripletmas.data.dataset import LabelledDataset
from tripletmas.models.embedding import Embeddings, embed


@pytest.mark.parametrize(
    ("vectors", "labels", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), "vectors must be float32"),
        (torch.zeros(2, 3), torch.zeros(2), "labels must be int64"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), r"labels must be int64 of shape \(2,\)"),
        (torch.tensor([[0.0], [math.nan]]), torch.zeros(2, dtype=torch.int64), "row 1 holds NaN"),
    ],
)
def test_embeddings_refuse_other_types_and_nan(vectors: Tensor, labels: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        Embeddings(vectors, labels)


def test_embeddings_do_not_change():
    with pytest.raises(FrozenInstanceError):
        Embeddings(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)).labels = torch.ones(2)  # type: ignore[misc]


def small_dataset(size: int = 11, *, paths: list[str] | None = None) -> LabelledDataset:
    samples = torch.randn(size, 5, generator=torch.Generator().manual_seed(3))
    return LabelledDataset(samples, torch.arange(size) % 3, ["a", "b", "c"], paths=paths)


def small_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 4))


def test_embed_is_the_model_in_eval_mode_whatever_the_batches():
    dataset, model = small_dataset(), small_model()
    view = dataset.subset([7, 2, 9, 0])
    model[0].eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = embed(model, dataset, batch_size=4)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(embed(model, dataset).vectors, found.vectors)
    torch.testing.assert_close(embed(model, view, batch_size=3).vectors, found.vectors[[7, 2, 9, 0]])
    assert torch.equal(embed(model, view).labels, dataset.labels[[7, 2, 9, 0]])
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(found.vectors, model(dataset.samples))
    assert not found.vectors.requires_grad
    (found.vectors @ model[3].weight).sum().backward()  # usable outside inference mode


def test_embed_restores_modes_after_an_error():
    class Fails(nn.Module):
        def forward(self, samples: Tensor) -> Tensor:
            raise RuntimeError("no")

    model = nn.Sequential(Fails())
    with pytest.raises(RuntimeError, match="no"):
        embed(model, small_dataset())
    assert model.training
    assert model[0].training


def test_embed_names_the_sample_that_is_not_finite():
    dataset = small_dataset(paths=[f"{i}.png" for i in range(11)])
    dataset.samples[6, 0] = math.inf  # type: ignore[index]
    view = dataset.subset([0, 1, 2, 6])
    with pytest.raises(ValueError, match=r"sample 3 \(6.png\) holds NaN or infinity"):
        embed(nn.Identity(), view, batch_size=3)


def test_embed_refuses_what_is_no_embedding():
    with pytest.raises(ValueError, match="empty data set"):
        embed(nn.Identity(), small_dataset().subset([]))
    with pytest.raises(ValueError, match=r"for 11 samples it returned \(55,\)"):
        embed(nn.Flatten(0), small_dataset())


def test_embed_converts_half_precision():
    class Half(nn.Module):
        def forward(self, samples: Tensor) -> Tensor:
            return samples.bfloat16()

    dataset = small_dataset()
    found = embed(Half(), dataset)
    assert torch.equal(found.vectors, dataset.samples.bfloat16().float())  # type: ignore[union-attr]


@pytest.mark.gpu
def test_embed_on_a_gpu_returns_to_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model = small_model()
    expected = embed(model, small_dataset()).vectors
    found = embed(model.cuda(), small_dataset(), batch_size=4)
    assert found.vectors.device.type == "cpu"
    torch.testing.assert_close(found.vectors, expected, rtol=1e-3, atol=1e-3)
