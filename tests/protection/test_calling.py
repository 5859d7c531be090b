"""A model is called on batches as data sets and frameworks have them, and of what it returns the embedding is taken."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from importance_cases import assert_same
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tripletmas.basics.weights import Params
from tripletmas.protection.importance.accumulator import ImportanceAccumulator
from tripletmas.protection.importance.fisher import fisher_importance, squared_gradient_importance
from tripletmas.protection.importance.local_mas import local_mas_importance
from tripletmas.protection.importance.mas import mas_importance
from tripletmas.protection.outputs import embedding_in
from tripletmas.protection.structured.moments import input_importance


def samples(count: int = 6) -> Tensor:
    return torch.rand(count, 8, generator=torch.Generator().manual_seed(1))


def labels(count: int = 6) -> Tensor:
    return torch.arange(count) % 4


def made(kind: type[nn.Module] = nn.Linear) -> nn.Module:
    torch.manual_seed(0)
    return kind(8, 4)


def accumulated(model: nn.Module, batches: Any) -> Params:
    running = ImportanceAccumulator(model)
    for batch in batches:
        running.update(batch)
    return running.importance()


MEASURES: dict[str, Callable[[nn.Module, Any], Params]] = {
    "mas": mas_importance,
    "accumulator": accumulated,
    "local": local_mas_importance,
    "gram": input_importance,
    "fisher, sampled": fisher_importance,
    "fisher, true": partial(fisher_importance, labels="true"),
    "squared gradients": partial(squared_gradient_importance, loss=nn.CrossEntropyLoss()),
}


class OfColumns(Dataset):
    """Rows that are dicts, as pytorch-metric-learning's `data_and_label_getter`, or Hugging Face's data sets have."""

    def __init__(self, name: str):
        self.name = name

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {self.name: samples()[index], "path": f"{index}.png", "labels": int(labels()[index])}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", ["data", "input_tensors", "pixel_values", "image", "images", "inputs", "input"])
def test_a_dict_with_one_tensor_of_a_known_name(measure: str, name: str):
    """The last is what nn.Linear's own forward calls it."""
    loader: Any = DataLoader(OfColumns(name), batch_size=3)
    plain = [(x, y) for x, y in zip(samples().split(3), labels().split(3), strict=True)]
    found, expected = (MEASURES[measure](made(), batches) for batches in (loader, plain))
    assert_same(found, expected)


class Two(nn.Linear):
    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(first if second is None else first - second)


class OfFeatures(nn.Linear):
    """Takes one dict, and says so."""

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return {**features, "sentence_embedding": super().forward(features["image"] - features["mean"])}


class OfSomething(nn.Linear):
    """Takes one dict, and does not say so."""

    def forward(self, batch):  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(batch["a"] - batch["b"])


class OfTransformers(nn.Linear):
    """Takes others beside its own arguments, and does nothing with them."""

    def forward(self, pixels: Tensor | None = None, **others: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert pixels is not None, "you have to give pixels"
        return super().forward(pixels)


class PassingOn(nn.Module):
    """As peft's models do."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


@pytest.mark.parametrize("wrapper", [nn.Identity, PassingOn])
@pytest.mark.parametrize(
    ("kind", "batch"),
    [
        (Two, {"first": 2 * samples(), "second": samples(), "label": labels(), "path": ["x"] * 6}),
        (Two, {"first": samples()}),
        (OfFeatures, {"image": 2 * samples(), "mean": samples(), "labels": labels()}),
        (OfSomething, {"a": 2 * samples(), "b": samples(), "labels": labels()}),
        (OfTransformers, {"pixels": samples(), "labels": labels()}),
        (OfTransformers, {"pixel_values": samples(), "labels": labels(), "index": labels()}),
        (nn.Linear, ({"image": samples()}, labels())),
    ],
)
def test_a_dict_as_a_model_takes_it(wrapper: type, kind: type[nn.Module], batch: Any):
    model = made(kind) if wrapper is nn.Identity else wrapper(made(kind))
    found = mas_importance(model, [batch])
    expected = mas_importance(made(), [samples()])
    torch.testing.assert_close(list(found.values()), list(expected.values()))


class OfAnything(nn.Linear):
    def forward(self, **inputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(inputs["one"])


def test_a_model_of_keywords_gets_all_that_may_be_for_it():
    batch = {"one": samples(), "image": samples(), "path": ["a"] * 6}
    assert_same(mas_importance(made(OfAnything), [batch]), mas_importance(made(), [samples()]))


def test_one_of_two_tensors_of_known_names_is_not_guessed():
    message = r"forward takes input, and a batch is a dict with image, data, label: .* forward=, a function"
    with pytest.raises(ValueError, match=message):
        mas_importance(made(), [{"image": samples(), "data": samples(), "label": labels()}])
    forward = lambda model, batch: model(batch["image"])  # noqa: E731
    found = mas_importance(made(), [{"image": samples(), "data": samples()}], forward=forward)
    assert_same(found, mas_importance(made(), [samples()]))


def test_what_a_dict_has_too_much_is_not_left_out_in_silence():
    """A mask under another name than the model's: measured without it, numbers would be wrong."""
    message = "takes first, second, and a batch is a dict with first, seconds"
    with pytest.raises(ValueError, match=message):
        mas_importance(made(Two), [{"first": samples(), "seconds": samples()}])


class OfWholeBatches(nn.Linear):
    """As a LightningModule may be."""

    def forward(self, batch):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, _ = batch
        return super().forward(x)


class OfDictsWithLabels(nn.Linear):
    def forward(self, batch):  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(batch["x"]) + batch["labels"][:, None]


@pytest.mark.parametrize("measure", ["mas", "gram", "fisher, sampled", "squared gradients"])
@pytest.mark.parametrize("count", [2, 6])
def test_a_forward_of_whole_batches_is_told_that_labels_were_cut_off(measure: str, count: int):
    """Two samples can be unpacked: then the shape is wrong."""
    batch = (samples(count), labels(count))
    given = r"the first of the 2 parts of a batch, since labels are not looked at"
    with pytest.raises(ValueError, match=f"{given}.*forward="):
        MEASURES[measure](made(OfWholeBatches), [batch])
    found = mas_importance(made(OfWholeBatches), [batch], forward=lambda model, batch: model(batch))
    assert_same(found, mas_importance(made(), [samples(count)]))


def test_a_forward_of_whole_dicts_is_told_that_labels_were_cut_off():
    message = r"cannot be called on what it was given \(KeyError: 'labels'\): a dict without labels, of x\. .*forward="
    with pytest.raises(ValueError, match=message):
        mas_importance(made(OfDictsWithLabels), [{"x": samples(), "labels": labels()}])


@pytest.mark.parametrize("batch", [["one text", "two"], (["one text"], torch.zeros(1))])
def test_texts_need_a_model_that_reads_them(batch: Any):
    with pytest.raises(ValueError, match=r"a batch of texts, and the model \(Linear\) has no tokenizer: give what its"):
        mas_importance(made(), [batch])


class Reading(nn.Embedding):
    """Has a tokenizer of its own: the length of a text is its number."""

    def __init__(self):
        super().__init__(9, 4)

    def tokenize(self, texts: list[str]) -> Tensor:
        return torch.tensor([len(text) for text in texts])


@pytest.mark.parametrize("batch", [["a", "bb"], (("a", "bb"), torch.zeros(2)), {"text": ["a", "bb"], "id": [1, 2]}])
def test_texts_are_read_by_the_models_tokenizer(batch: Any):
    torch.manual_seed(0)
    model = Reading()
    assert_same(mas_importance(model, [batch]), mas_importance(model, [torch.tensor([1, 2])]))


# --- what a model returns

Named = namedtuple("Named", ["image_embeds", "last_hidden_state"])
WANTED, OTHER, TOKENS = torch.zeros(3, 4), torch.ones(3, 4), torch.ones(3, 7, 4)


@pytest.mark.parametrize(
    "output",
    [
        WANTED,
        (WANTED,),
        [WANTED, None],
        {"embedding": WANTED},
        {"last_hidden_state": TOKENS, "pooler_output": WANTED},
        {"pooler_output": OTHER, "image_embeds": WANTED, "last_hidden_state": TOKENS},
        {"token_embeddings": TOKENS, "sentence_embedding": WANTED, "pooler_output": OTHER, "modality": "text"},
        {"logits": WANTED, "hidden_states": (TOKENS, TOKENS), "loss": None},
        Named(WANTED, TOKENS),
    ],
)
def test_the_embedding_in_an_output(output: Any):
    assert embedding_in(output) is WANTED


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"last_hidden_state": TOKENS}, r"a vector for each token or patch, .*\[:, 0\] .*mean over the tokens"),
        ({"image_embeds": WANTED, "text_embeds": OTHER, "pooler_output": OTHER}, r"image_embeds \(3, 4\), text_embeds"),
        ((TOKENS, WANTED), r"a tuple with 0 \(3, 7, 4\), 1 \(3, 4\), any of which may be meant: give forward="),
        (None, "returns a NoneType, not a tensor"),
        ({}, "returns a dict, not a tensor"),
    ],
)
def test_an_output_that_does_not_tell(output: Any, message: str):
    with pytest.raises(ValueError, match=message):
        embedding_in(output)


def test_a_dict_without_a_tensor_is_told_by_its_keys():
    with pytest.raises(ValueError, match=r"a dict without any, of anchor, positive: name texts 'text' .*give forward="):
        mas_importance(OfFeatures(8, 4), [{"anchor": ["one", "two"], "positive": ["three", "four"]}])


def test_a_model_without_a_forward_is_told():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(8, 4)

    with pytest.raises(ValueError, match="a Whole has no forward: protect the part of it that embeds, or give"):
        mas_importance(Whole(), [samples()])
