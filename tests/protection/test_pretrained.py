"""A protection travels in its model's folder, also where names have got another prefix since."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from importance_cases import assert_same
from torch import Tensor, nn

from tripletmas.basics.weights import Params
from tripletmas.protection.importance.mas import mas_importance
from tripletmas.protection.protection import MAS, LocalMAS, Protection
from tripletmas.protection.structured.gram import Gram

GUARDS: dict[str, Callable[..., Any]] = {"mas": MAS, "local_mas": LocalMAS, "gram": Gram}


class Network(nn.Module):
    """Two layers of one shape, with normalisation, and a head."""

    def __init__(self, seed: int = 0, head: str = "head"):
        super().__init__()
        torch.manual_seed(seed)
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.add_module(head, nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x.sigmoid())
        return x


class Inside(nn.Module):
    """A network under a name of its own."""

    def __init__(self, network: nn.Module, name: str = "model"):
        super().__init__()
        self.add_module(name, network)

    def forward(self, x: Tensor) -> Tensor:
        return next(self.children())(x)


def data() -> Tensor:
    return torch.rand(12, 6, generator=torch.Generator().manual_seed(3))


def saved(folder: Path, guard: str, model: nn.Module) -> Any:
    held = GUARDS[guard](model, 0.7) if guard != "gram" else Gram(model, strength=0.7, decay=0.5)
    held.consolidate([data()])
    held.save_pretrained(folder)
    return held


def loaded(folder: Path, guard: str, model: nn.Module, **options: Any) -> Any:
    return (Gram if guard == "gram" else Protection).from_pretrained(folder, model, **options)


def moved(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1)
    return model


@pytest.mark.parametrize("guard", GUARDS)
def test_a_protection_travels_with_its_model(tmp_path: Path, guard: str):
    """The penalty of weights that have moved is the same; the folder is made, and what is in it stays."""
    folder = tmp_path / "some" / "model"
    held = saved(folder, guard, Network())
    assert [path.name for path in folder.iterdir()] == ["protection.safetensors"]
    (folder / "model.safetensors").write_bytes(b"weights")
    held.save_pretrained(folder)  # again
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    again = loaded(folder, guard, Network())
    assert (again.strength, again.decay) == (0.7, held.decay)
    assert_same(again.state_dict(), held.state_dict(), rtol=0)
    moved(held.model), moved(again.model)
    assert again.value() == held.value() > 0


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("kind", ["prefix", "no prefix", "other prefix", "longer prefix"])
def test_names_with_another_prefix(tmp_path: Path, guard: str, kind: str):
    """And they are then held: a step is pulled as before."""
    before, now = {
        "prefix": (Network(), Inside(Network())),
        "no prefix": (Inside(Network()), Network()),
        "other prefix": (Inside(Network(), "auto_model"), Inside(Network(), "model")),
        "longer prefix": (Inside(Network(), "model"), Inside(Inside(Network(), "model"), "model")),
    }[kind]
    held = saved(tmp_path, guard, before)
    again = loaded(tmp_path, guard, now)
    assert all(a.equal(b) for a, b in zip(held.importance.values(), again.importance.values(), strict=True))
    assert list(again.importance) == [name for name, _ in now.named_parameters()]
    moved(before), moved(now)
    assert again.value() == held.value() > 0
    again.attach(torch.optim.SGD(now.parameters(), lr=1e-3)), again.consolidate([data()])


def test_another_prefix_is_seen_although_the_weights_have_moved(tmp_path: Path):
    saved(tmp_path, "mas", Network())
    with pytest.warns(UserWarning, match=r"100.00% of the weights"):
        again = loaded(tmp_path, "mas", Inside(moved(Network())))
    assert again.value() > 0


def test_a_file_by_itself_is_matched_as_well(tmp_path: Path):
    held = MAS(Network())
    held.consolidate([data()])
    held.save(tmp_path / "mas.safetensors")
    again = Protection.load(tmp_path / "mas.safetensors", Inside(Network()))
    assert list(again.importance) == [f"model.{name}" for name in held.importance]


@pytest.mark.parametrize("guard", GUARDS)
def test_what_matches_nothing_is_listed(tmp_path: Path, guard: str):
    """A new layer in the place of another is not taken for it, though it has the shape."""
    saved(tmp_path, guard, Network())
    other = Network(head="classifier")
    nn.init.ones_(other.classifier.weight)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    with pytest.raises(ValueError, match=r"saved for another model: .*classifier.*unexpected: head.bias, head.weight"):
        loaded(tmp_path, guard, other)
    with pytest.raises(ValueError, match="saved for another model"):
        loaded(tmp_path, guard, Inside(other))  # all but the head have their names


def test_a_layer_that_was_only_renamed_is_known_by_its_weights(tmp_path: Path):
    saved(tmp_path, "mas", Network())
    again = loaded(tmp_path, "mas", Network(head="classifier"))
    assert "classifier.weight" in again.importance


def test_two_networks_of_which_either_may_be_meant(tmp_path: Path):
    saved(tmp_path, "mas", Network(seed=1))
    towers = nn.ModuleDict({"query": Network(seed=2), "answer": Network(seed=3)})
    with pytest.raises(ValueError, match="saved for another model"):
        loaded(tmp_path, "mas", towers)
    towers["answer"].load_state_dict(Network(seed=1).state_dict())  # now its weights tell
    assert all(name.startswith("answer.") for name in loaded(tmp_path, "mas", towers).importance)


@pytest.mark.parametrize("guard", GUARDS)
def test_other_weights_are_told(tmp_path: Path, guard: str):
    """6 * 6 + 6 of 6 * 6 + 6 + 6 * 6 + 6 + 6 * 3 + 3 = 105 weights are others."""
    saved(tmp_path, guard, Network())
    model = Network()
    moved(model.one)
    with pytest.warns(UserWarning, match=r"protection.safetensors: 40.00% of the weights .* \(one.weight, one.bias\)"):
        again = loaded(tmp_path, guard, model)
    assert again.value() > 0


@pytest.mark.parametrize("guard", GUARDS)
def test_a_model_that_is_not_trained_is_told(tmp_path: Path, guard: str):
    saved(tmp_path, guard, Network())
    with pytest.warns(UserWarning, match=r"none of the weights that it holds is trained .* is_trainable=True"):
        loaded(tmp_path, guard, Network().requires_grad_(False))


def wide(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 90), nn.Sigmoid(), nn.Linear(90, 9))


def step(model: nn.Module, guard: Any, rate: float = 0.001) -> None:
    optimizer = torch.optim.Adam(model.parameters(), rate)
    guard.attach(optimizer)
    model(data()).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("guard", GUARDS)
def test_weights_as_of_another_model_are_told_at_the_first_step(tmp_path: Path, guard: str):
    """Of 1,350 weights that were drawn anew; once, and not before the model may have got its own."""
    saved(tmp_path, guard, wide(0))
    kind, path = Gram if guard == "gram" else Protection, tmp_path / "protection.safetensors"
    other = wide(1)
    again = kind.load(path, other)
    with pytest.warns(UserWarning, match=r"was loaded with are unlike those of the model \(correlation -?0.0"):
        step(other, again)
    step(other, again)
    late = wide(1)
    again = kind.load(path, late)
    late.load_state_dict(wide(0).state_dict())
    step(late, again)


@pytest.mark.parametrize("guard", GUARDS)
def test_weights_that_have_learned_on_are_not(tmp_path: Path, guard: str):
    """By steps of a tenth of their size."""
    model = wide(0)
    held = saved(tmp_path, guard, model)
    for _ in range(5):
        step(model, held, 0.02)
    step(model, (Gram if guard == "gram" else Protection).load(tmp_path / "protection.safetensors", model))


def test_functions_are_asked_for(tmp_path: Path):
    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch) * 2

    def squares(model: nn.Module, batches: Any) -> Params:
        return {name: value.square() for name, value in model.named_parameters()}

    MAS(Network(), forward=forward).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="give the same function as forward="):
        Protection.from_pretrained(tmp_path, Network())
    MAS.from_pretrained(tmp_path, Network(), forward=forward).consolidate([data()])
    Protection(Network(), strength=1.0, estimate=squares).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="give the same function as estimate="):
        Protection.from_pretrained(tmp_path, Network())
    Protection.from_pretrained(tmp_path, Network(), estimate=squares).consolidate([data()])


def test_folders_that_hold_none(tmp_path: Path):
    for kind in (Protection, Gram):
        with pytest.raises(ValueError, match=r"holds no protection \(protection.safetensors\): save_pretrained of a"):
            kind.from_pretrained(tmp_path, Network())
        with pytest.raises(ValueError, match=r"no such folder: someone/model; .*snapshot_download"):
            kind.from_pretrained("someone/model", Network())
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file is a file: name the model's folder, in which"):
        MAS(Network()).save_pretrained(tmp_path / "file")
    saved(tmp_path, "mas", Network())
    with pytest.raises(ValueError, match="it holds weights one by one"):
        Gram.from_pretrained(tmp_path, Network())


# --- beside what libraries write


def check_beside(
    folder: Path, model: nn.Module, batches: Any, save: Callable[[Path], Any], read: Callable[[Path], nn.Module]
) -> None:
    """Model and protection saved in either order: the model is read as ever, and its protection holds it."""
    for guard in (MAS, Gram):
        held: Any = guard(model)
        held.consolidate(batches)
        for order in ((save, held.save_pretrained), (held.save_pretrained, save)):
            place = folder / f"{guard.__name__}{order[0] is save}"
            for write in order:
                write(place)
            again = read(place)
            assert all(value.equal(again.state_dict()[name]) for name, value in model.state_dict().items())
            assert_same(guard.from_pretrained(place, again).state_dict(), held.state_dict(), rtol=0)


def test_beside_a_model_of_the_hub_mixin(tmp_path: Path):
    from huggingface_hub import PyTorchModelHubMixin

    class OfTheHub(Network, PyTorchModelHubMixin):  # pyright: ignore[reportIncompatibleMethodOverride]
        pass

    model: Any = OfTheHub()
    check_beside(tmp_path, model, [data()], model.save_pretrained, OfTheHub.from_pretrained)


@pytest.mark.slow
def test_beside_a_sentence_encoder(tmp_path: Path, tiny_encoder: Path):
    """Also of an earlier version, whose names have `auto_model` where there is `model` now."""
    from sentence_transformers import SentenceTransformer

    def read(place: Path) -> SentenceTransformer:
        return SentenceTransformer(str(place), device="cpu")

    model, texts = read(tiny_encoder), [["where is my card", "the parcel is late"]]
    check_beside(tmp_path, model, texts, lambda place: model.save_pretrained(str(place), create_model_card=False), read)
    of_earlier: Any = nn.ModuleList([Inside(model[0].model, "auto_model")])
    before = mas_importance(model, texts)
    held = Protection(of_earlier, strength=1.0, estimate=mas_importance)
    held.add({name.replace("0.model.", "0.auto_model."): value for name, value in before.items()})
    held.save_pretrained(tmp_path / "earlier")
    assert_same(Protection.from_pretrained(tmp_path / "earlier", model).importance, before, rtol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks an old name of transformers
def test_beside_a_model_of_transformers_and_adapters_of_peft(tmp_path: Path):
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import BertConfig, BertModel

    def make() -> Any:
        torch.manual_seed(0)
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        return BertModel(BertConfig(vocab_size=20, **sizes))

    ids = {"input_ids": torch.arange(12).reshape(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.int64)}
    model = make()
    check_beside(tmp_path / "whole", model, [ids], model.save_pretrained, BertModel.from_pretrained)
    adapted: Any = get_peft_model(make(), LoraConfig(target_modules=["query"], r=2, init_lora_weights=False))

    def read(place: Path) -> Any:
        return PeftModel.from_pretrained(make(), str(place), is_trainable=True)

    check_beside(tmp_path / "adapted", adapted, [ids], adapted.save_pretrained, read)


@pytest.mark.slow
def test_beside_a_model_of_timm(tmp_path: Path):
    import timm
    from timm.models import load_checkpoint, save_for_hf

    def make() -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model("test_resnet", num_classes=0, zero_init_last=False).eval()

    def read(place: Path) -> nn.Module:
        again = make()
        load_checkpoint(again, str(place / "model.safetensors"))
        return again

    model, images = make(), torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    check_beside(tmp_path, model, [images], lambda place: save_for_hf(model, str(place), safe_serialization=True), read)
