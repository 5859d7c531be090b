"""Encoders of transformers and timm: measured by rules, equal to the loop, although they read their masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import oracles
import pytest
import timm
import torch
import transformers
from importance_cases import SLOW, assert_same
from torch import Tensor, nn

from tripletmas.protection.importance.mas import mas_importance
from tripletmas.protection.structured.gram import Gram

TEXT: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "vocab_size": 30,
}
IMAGE: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}
LAST = 9  # words of the longest text


class Mean(nn.Module):
    """The mean over the words that the mask shows, of (n, 2, length): words and mask."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        words, mask = x.unbind(1)
        states = self.encoder(input_ids=words, attention_mask=mask)[0]
        return (states * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)


class First(nn.Module):
    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)[0][:, 0]


def bert(**options: Any) -> nn.Module:
    config = transformers.BertConfig(**TEXT, max_position_embeddings=16, **options)
    return transformers.BertModel(config, add_pooling_layer=False)


def distilbert() -> nn.Module:
    config = transformers.DistilBertConfig(
        dim=8, n_layers=2, n_heads=2, hidden_dim=12, vocab_size=30, max_position_embeddings=16
    )
    return transformers.DistilBertModel(config)


def like_roberta(name: str) -> nn.Module:
    config = getattr(transformers, f"{name}Config")(**TEXT, max_position_embeddings=16, pad_token_id=1)
    return getattr(transformers, f"{name}Model")(config, add_pooling_layer=False)


def vit() -> nn.Module:
    return transformers.ViTModel(transformers.ViTConfig(num_hidden_layers=2, **IMAGE), add_pooling_layer=False)


def texts(n: int) -> Tensor:
    """Every third is as long as the longest, without padding."""
    lengths = torch.tensor([LAST, 2, 5]).repeat(n)[:n]
    mask = (torch.arange(LAST) < lengths.unsqueeze(1)).long()
    return torch.stack([torch.where(mask > 0, torch.randint(5, 30, (n, LAST)), 1), mask], dim=1)


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 16, 16, dtype=torch.float64)


ENCODERS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "bert": (lambda: Mean(bert()), texts),
    "bert, eager attention": (lambda: Mean(bert(attn_implementation="eager")), texts),
    "distilbert": (lambda: Mean(distilbert()), texts),
    "roberta": (lambda: Mean(like_roberta("Roberta")), texts),
    "mpnet": (lambda: Mean(like_roberta("MPNet")), texts),
    "vit of transformers": (lambda: First(vit()), images),
    "vit of timm": (
        lambda: timm.create_model(
            "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=8, depth=2, num_heads=2, num_classes=0
        ),
        images,
    ),
    "convnext of timm": (
        lambda: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(4, 4, 6, 6), num_classes=0),
        lambda n: images(n).repeat(1, 1, 2, 2),
    ),
}


def drawn(model: nn.Module) -> nn.Module:
    """Weights at which every part matters: layer scales and biases start near zero."""
    for value in model.parameters():
        nn.init.normal_(value, 0.5 if value.ndim < 2 else 0.0, 0.3)
    return model.double().eval()


@pytest.mark.parametrize("name", ENCODERS)
def test_takes_the_fast_path_and_equals_the_loop(name: str, caplog: pytest.LogCaptureFixture):
    torch.manual_seed(0)
    make, samples = ENCODERS[name]
    model, x = drawn(make()), samples(7)
    caplog.set_level("INFO", "tripletmas")
    found = mas_importance(model, [x[:5], x[5:]])
    assert SLOW not in caplog.text
    assert_same(found, oracles.mas_importance(model, x.split(1)))


def test_a_dict_of_features_with_a_forward(caplog: pytest.LogCaptureFixture):
    """As sentence-transformers makes them, a word among them."""
    torch.manual_seed(0)
    model, x = drawn(Mean(bert())), texts(6)

    def features(part: Tensor) -> dict[str, Any]:
        words, mask = part.unbind(1)
        return {
            "input_ids": words,
            "attention_mask": mask,
            "token_type_ids": torch.zeros_like(words),
            "modality": "text",
        }

    def forward(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        states = model.encoder(**{name: value for name, value in batch.items() if name != "modality"})[0]  # pyright: ignore[reportCallIssue]
        mask = batch["attention_mask"].unsqueeze(2)
        return (states * mask).sum(1) / mask.sum(1)

    caplog.set_level("INFO", "tripletmas")
    assert_same(mas_importance(model, [features(x)], forward=forward), oracles.mas_importance(model, x.split(1)))
    assert SLOW not in caplog.text


def test_gram_explains_every_weight_of_an_encoder():
    """But for the tables that are computed on before they meet a word, all are linear maps."""
    torch.manual_seed(0)
    model = drawn(Mean(bert()))
    gram = Gram(model)
    found = gram.consolidate([texts(6)])
    assert found.keys() == dict(model.named_parameters()).keys()
    assert gram.coverage().alone == ()
