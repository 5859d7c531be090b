"""How a model is called on a batch, as frameworks have batches.

Shapes: n samples in a batch; the embedding is (n, ...).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

from torch import Tensor, clone, nn

from tripletmas.basics.sentences import listed, with_article
from tripletmas.basics.weights import unwrap
from tripletmas.protection.arguments import Arguments
from tripletmas.protection.batches import Forward, Uncallable, apply, are_texts, num_samples
from tripletmas.protection.outputs import REMEDY, embedding_in

LABELS = ("label", "labels")
# Names under which data sets and loaders have the one tensor that a model takes, and the texts.
_TENSORS = ("data", "input_tensors", "pixel_values", "image", "images", "inputs")
_TEXTS = ("text", "texts", "sentence", "sentences")
# What torch says where a tensor meets weights of another type.
_OTHER_TYPE = re.compile(r"same dtype|scalar type|type.* should be the same")


@final
class ModelCall:
    """Calls a model on inputs, which `inputs_of` took out of a batch: (model, inputs) -> its embedding (n, ...).

    The model gets copies: one that normalises its input in place would else find it normalised when it is called again,
    and the caller's batch would be changed. A sentence encoder that ends in a normalisation is measured before it.

    Args:
        layer: name of the submodule whose output is taken in place of the model's.
        forward: how to call the model on a whole batch.

    Raises:
        ValueError: for an unknown layer; when called, for inputs of another type than the weights, and for an output
            in which there is no tensor of one row a sample, or several and nothing that says which.
        Uncallable: when called, where the model fails on a batch of which it was given a part.
    """

    def __init__(self, model: nn.Module, layer: str | None, forward: Forward | None):
        model = unwrap(model)
        self._model, self._forward, self._arguments = model, forward, Arguments(model)
        self._given: str | None = None  # what a model was given of the last batch, where that was not all
        self._call = forward or self._on_inputs
        if layer is not None:
            self._call = _before_or_after(_named(model, layer), f"layer {layer!r}", self._call)
        elif self._arguments.is_dict and (normalisation := _final_normalisation(model)) is not None:
            self._call = _before_or_after(normalisation, "its normalisation", self._call, before=True)

    def inputs_of(self, batch: Any) -> Any:
        """What the model is called on: the whole batch where there is a `forward`, else the inputs without labels.

        Texts are as the model's own tokenizer reads them.

        Raises:
            ValueError: for texts and a model without a tokenizer; for a dict that is nothing the model takes.
        """
        self._given = None
        if self._forward:
            return batch
        if isinstance(batch, (tuple, list)) and batch and not are_texts(batch):
            batch, *rest = batch
            if rest:
                self._given = f"the first of the {len(rest) + 1} parts of a batch, since labels are not looked at"
        if isinstance(batch, str):
            raise ValueError("a batch is a list of texts, and this is one text: give [texts]")
        if are_texts(batch):
            return self._tokenized(batch)
        return self._of_mapping(batch) if isinstance(batch, Mapping) else batch

    def __call__(self, model: nn.Module, inputs: Any) -> Tensor:
        try:
            output = embedding_in(self._call(model, apply(clone, inputs)))
        except RuntimeError as error:
            if not _OTHER_TYPE.search(str(error)):
                raise
            raise ValueError(
                f"the model cannot be called on this batch in full precision, outside autocast ({error}): give batches "
                "in the type of its weights; for a model that needs autocast, a forward= that enters it"
            ) from error
        if output.ndim == 0 or len(output) != num_samples(inputs):
            given = f"; it was given {self._given}: {REMEDY}" if self._given else ""
            raise ValueError(f"the model's output has shape {tuple(output.shape)}, expected one row a sample{given}")
        return output

    def _on_inputs(self, model: nn.Module, inputs: Any) -> Any:
        as_keywords = isinstance(inputs, dict) and self._arguments.has_names_of(inputs)
        try:
            return model(**inputs) if as_keywords else model(inputs)
        except NotImplementedError as error:
            if "forward" not in str(error):
                raise
            kind = type(self._model).__name__
            raise Uncallable(
                f"{with_article(kind)} has no forward: protect the part of it that embeds, or {REMEDY}"
            ) from error
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            if self._given is None:
                raise
            raise Uncallable(
                f"the model cannot be called on what it was given ({type(error).__name__}: {error}): {self._given}. "
                f"If its forward takes the whole batch, forward=lambda model, batch: model(batch); else {REMEDY}"
            ) from error

    def _of_mapping(self, batch: Mapping[Any, Any]) -> Any:
        inputs = {key: value for key, value in batch.items() if key not in LABELS}
        self._given = f"a dict without labels, of {listed(map(str, inputs))}{_of_lists(inputs)}"
        text = _the_one(_TEXTS, inputs, are_texts)
        if text and self._tokenizer() and "input_ids" not in inputs:
            return self._tokenized(inputs[text])
        named = self._arguments.those_of(inputs)
        if named is not None:
            return named
        tensor = _the_one(_TENSORS, inputs, lambda value: isinstance(value, Tensor))
        if tensor:
            self._given = f"the tensor {tensor!r} of a dict with {listed(map(str, batch))}"
            return inputs[tensor]
        if self._arguments.may_take_dict:
            return inputs
        raise ValueError(
            f"the model's forward takes {self._arguments.named()}, and a batch is a dict with "
            f"{listed(map(str, batch))}: name the tensor that it takes {', '.join(_TENSORS[:-1])} or {_TENSORS[-1]}, "
            f"or {REMEDY}"
        )

    def _tokenizer(self) -> Any:
        """What makes features of texts: the model's `preprocess`, or `tokenize` of earlier sentence encoders."""
        found = getattr(self._model, "preprocess", None) or getattr(self._model, "tokenize", None)
        return found if callable(found) else None

    def _tokenized(self, texts: Any) -> Any:
        tokenizer = self._tokenizer()
        if tokenizer is None:
            raise ValueError(
                f"a batch of texts, and the model ({type(self._model).__name__}) has no tokenizer: give what its "
                "tokenizer makes of them, tokenizer(texts, padding=True, return_tensors='pt')"
            )
        prompts, name = getattr(self._model, "prompts", None), getattr(self._model, "default_prompt_name", None)
        prompt = prompts.get(name) if isinstance(prompts, Mapping) and name else None
        return tokenizer(list(texts), prompt=prompt) if prompt else tokenizer(list(texts))


def _the_one(names: Sequence[str], inputs: Mapping[Any, Any], is_right: Callable[[Any], bool]) -> str | None:
    """The one of these names that is in a dict, and right; None for none, or several."""
    found = [name for name in names if is_right(inputs.get(name))]
    return found[0] if len(found) == 1 else None


def _of_lists(inputs: Mapping[Any, Any]) -> str:
    """What to say of a dict whose tensors lie in lists, one for each number of a sample."""
    lists = {str(key): value for key, value in inputs.items() if isinstance(value, list) and value}
    found = [key for key, value in lists.items() if all(isinstance(each, Tensor) for each in value)]
    if not found:
        return ""
    return f" ({listed(found)}: lists of tensors, which a data set of Hugging Face gives without with_format('torch'))"


# --- what a module is given or returns, in a pass of the model


def _named(model: nn.Module, layer: str) -> nn.Module:
    modules = dict(model.named_modules())
    if layer not in modules or not layer:
        raise ValueError(f"the model has no layer {layer!r}; its layers are: {', '.join(filter(None, modules))}")
    return modules[layer]


def _final_normalisation(model: nn.Module) -> nn.Module | None:
    """The first of the modules at the end of a sentence encoder that normalise the embedding; None without any."""
    found = None
    for module in reversed(list(model.children())):
        if type(module).__name__ != "Normalize":
            break
        found = module
    return found


def _before_or_after(module: nn.Module, what: str, call: Forward, *, before: bool = False) -> Forward:
    """Calls the model for what this module of it returns, or, before it, is given."""

    def of_module(callee: nn.Module, inputs: Any) -> Tensor:
        found: list[Any] = []
        with _kept(module, found, before=before):
            call(callee, inputs)
        if len(found) != 1:
            raise ValueError(f"{what} ran {len(found)} times in one forward pass; it must run once")
        return found[0]

    return of_module


@contextmanager
def _kept(module: nn.Module, found: list[Any], *, before: bool) -> Iterator[None]:
    def keep(value: Any) -> None:
        # a copy: the next layer may change its input in place, and features are one dict from the first to the last
        value = embedding_in(value)
        found.append(value.clone())

    if before:
        handle = module.register_forward_pre_hook(lambda _, inputs: keep(inputs[0]))
    else:
        handle = module.register_forward_hook(lambda _, inputs, output: keep(output))
    try:
        yield
    finally:
        handle.remove()
