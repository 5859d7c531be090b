"""A model of texts: what its library says of them, before it normalises; and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tiny_texts import write_encoder
from torch import nn

from tripletmas.data.tokens import Texts
from tripletmas.models.embedding import embed
from tripletmas.models.making import make_model
from tripletmas.models.networks import embedding_dim
from tripletmas.models.text import text_encoder_of

STRINGS = ("where is my parcel?", "card", "the money is back . my account is blocked")


def made(folder, **options):
    model = make_model(f"sentence-transformers:{folder}", (), options=options)
    encoder = text_encoder_of(model)
    assert encoder is not None
    return model, encoder


def batch_of(encoder, strings=STRINGS):
    from tripletmas.data.dataset import LabelledDataset

    samples = Texts(strings, encoder.tokenizer)
    return LabelledDataset(samples, torch.zeros(len(strings)), ["x"], texts=strings)


def test_it_embeds_as_its_library_does_before_the_normalisation(tiny_encoder):
    from sentence_transformers import SentenceTransformer

    model, encoder = made(tiny_encoder)
    ours = embed(model, batch_of(encoder)).vectors
    library = SentenceTransformer(str(tiny_encoder), device="cpu", local_files_only=True)
    features = library.preprocess(list(STRINGS))
    with torch.no_grad():
        theirs = library.eval()[1](library[0](features))["sentence_embedding"]  # pooled, not normalised
        unit = library[2]({"sentence_embedding": theirs})["sentence_embedding"]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert not torch.allclose(ours.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(3))  # so there was one
    assert embedding_dim(model, ()) == 16


def test_padding_changes_nothing(tiny_encoder):
    model, encoder = made(tiny_encoder)
    data = batch_of(encoder)
    alone = torch.cat([embed(model, data.subset([each])).vectors for each in range(3)])
    torch.testing.assert_close(embed(model, data).vectors, alone, rtol=0, atol=1e-6)


def test_weights_without_a_part_in_the_embedding_are_taken_out(tiny_encoder):
    model, encoder = made(tiny_encoder)
    assert not any("pooler" in name for name, _ in model.named_parameters())
    model.eval()(batch_of(encoder)[[0, 1]][0]).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_a_head_of_another_length(tiny_encoder):
    model, encoder = made(tiny_encoder, dim=5)
    assert embed(model, batch_of(encoder)).vectors.shape == (3, 5)
    assert isinstance(list(model.modules())[-1], nn.Linear)
    with pytest.raises(ValueError, match="dim must be >= 1"):
        made(tiny_encoder, dim=0)


def test_length_and_prompt_are_part_of_the_tokenizer(tiny_encoder):
    _, encoder = made(tiny_encoder)
    _, short = made(tiny_encoder, max_length=4)
    _, prompted = made(tiny_encoder, prompt="where ")
    assert len({each.tokenizer.identity for each in (encoder, short, prompted)}) == 3
    assert [len(ids) for ids in short.tokenizer.encode(STRINGS, True)] == [4, 3, 4]
    assert prompted.tokenizer.encode(["card"], False) == encoder.tokenizer.encode(["where card"], False)
    assert made(tiny_encoder)[1].tokenizer.identity == encoder.tokenizer.identity
    with pytest.raises(ValueError, match="max_length must lie between 3 and 12"):
        made(tiny_encoder, max_length=13)


def test_it_is_found_again_by_its_files(tiny_encoder, tmp_path):
    folder = shutil.copytree(tiny_encoder, tmp_path / "copy")
    _, encoder = made(folder)
    assert encoder.source["name"] == f"sentence-transformers:{folder}"
    made(folder, sha256=encoder.source["sha256"])
    (folder / "vocab.txt").write_text((folder / "vocab.txt").read_text() + "more\n")
    with pytest.raises(ValueError, match="is not the model that the run began with"):
        made(folder, sha256=encoder.source["sha256"])


def test_a_tokenizer_without_padding(tmp_path):
    folder = write_encoder(tmp_path / "unpadded", pad_token=False)
    with pytest.raises(ValueError, match="has no padding token"):
        made(folder)


def test_a_tokenizer_whose_files_are_missing(tiny_encoder, tmp_path):
    """transformers then makes one up of special tokens alone, to which all words are the unknown one."""
    folder = shutil.copytree(tiny_encoder, tmp_path / "copy")
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"copy knows no words: its files are missing"):
        made(folder)


def test_what_is_no_sentence_encoder(tmp_path, tiny_encoder):
    with pytest.raises(ValueError, match="no such folder"):
        made(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"is no sentence-transformers model: it has no modules\.json"):
        made(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"consists of Transformer, in place of a Transformer at first"):
        made(write_encoder(tmp_path / "tokens", modules=["Transformer", "Normalize"]))
    broken = shutil.copytree(tiny_encoder, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="is no sentence-transformers model that can be read"):
        made(broken)


def test_no_code_of_a_model_is_executed(tiny_encoder, tmp_path):
    folder = shutil.copytree(tiny_encoder, tmp_path / "foreign")
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "own.Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "own.py").write_text("raise SystemExit('executed')")
    with pytest.raises(ValueError, match=r"with code of their own, which is not executed: own\.Transformer"):
        made(folder)


def test_it_takes_no_images(tiny_encoder):
    with pytest.raises(ValueError, match=r"reads texts, and the data have samples of shape \(1, 8, 8\)"):
        make_model(f"sentence-transformers:{tiny_encoder}", (1, 8, 8))


def test_what_a_run_names_is_not_fetched(tiny_encoder, monkeypatch):
    import huggingface_hub

    asked = []

    def download(repository, *, local_files_only, allow_patterns, ignore_patterns):
        asked.append((repository, local_files_only))
        if local_files_only:
            raise OSError("it is not here")
        return str(tiny_encoder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    _, encoder = made("some-name")
    assert encoder.source["name"] == "sentence-transformers:some-name"
    with pytest.raises(ValueError, match=r"no folder own/name, and own/name cannot be fetched .*it is not here"):
        made("own/name", sha256="0")
    assert asked == [("sentence-transformers/some-name", False), ("own/name", True)]


def test_texts_of_one_length_are_embedded_together(tiny_encoder, monkeypatch):
    model, encoder = made(tiny_encoder)
    strings = ["card lost", "where is my parcel", "pin", "the money is back . i paid"]
    data = batch_of(encoder, strings)
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape)))
    vectors = embed(model, data, batch_size=2).vectors
    assert seen == [(2, 2, 4), (2, 2, 9)]  # tokens between [CLS] and [SEP]: 2 and 1, then 4 and 7
    alone = torch.cat([embed(model, data.subset([each])).vectors for each in range(4)])
    torch.testing.assert_close(vectors, alone, rtol=0, atol=1e-6)
