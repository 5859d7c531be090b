"""How a model is called on a batch, as frameworks have batches, and what of its output is the embedding.

Shapes: n samples in a batch; the embedding is (n, ...).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

from torch import Tensor, clone, nn

from tripletmas.basics.sentences import listed
from tripletmas.basics.weights import unwrap
from tripletmas.protection.batches import Forward, Uncallable, apply, are_texts, num_samples

LABELS = ("label", "labels")
# Names under which data sets and loaders have the one tensor that a model takes, and the texts.
_TENSORS = ("data", "input_tensors", "pixel_values", "image", "images", "inputs")
_TEXTS = ("text", "texts", "sentence", "sentences")
# An embedding by the names of transformers and Sentence Transformers, the surest first.
_EMBEDDINGS = (("sentence_embedding",), ("image_embeds", "text_embeds"), ("pooler_output",), ("logits",))
_TAKES_DICT = re.compile(r"(?i)\b(\w*dict|mapping|batchencoding|batchfeature)\b")
# What torch says where a tensor meets weights of another type.
_OTHER_TYPE = re.compile(r"same dtype|scalar type|type.* should be the same")
_FORWARD = "give forward=, a function (model, batch) -> embeddings"


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
        self._model, self._forward, self._arguments = model, forward, _Arguments(model)
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
            given = f"; it was given {self._given}: {_FORWARD}" if self._given else ""
            raise ValueError(f"the model's output has shape {tuple(output.shape)}, expected one row a sample{given}")
        return output

    def _on_inputs(self, model: nn.Module, inputs: Any) -> Any:
        as_keywords = isinstance(inputs, dict) and self._arguments.has_names_of(inputs)
        try:
            return model(**inputs) if as_keywords else model(inputs)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            if self._given is None:
                raise
            raise Uncallable(
                f"the model cannot be called on what it was given ({type(error).__name__}: {error}): {self._given}. "
                f"If its forward takes the whole batch, forward=lambda model, batch: model(batch); else {_FORWARD}"
            ) from error

    def _of_mapping(self, batch: Mapping[Any, Any]) -> Any:
        inputs = {key: value for key, value in batch.items() if key not in LABELS}
        self._given = f"a dict without labels, of {listed(map(str, inputs))}"
        texts = [key for key in _TEXTS if are_texts(inputs.get(key))]
        if len(texts) == 1 and self._tokenizer() and "input_ids" not in inputs:
            return self._tokenized(inputs[texts[0]])
        if self._arguments.is_dict:
            return inputs
        named = {key: value for key, value in inputs.items() if self._arguments.may_be(key, value)}
        if self._arguments.has_names_of(named):
            return named
        tensors = [key for key in _TENSORS if isinstance(inputs.get(key), Tensor)]
        if len(tensors) == 1:
            self._given = f"the tensor {tensors[0]!r} of a dict with {listed(map(str, batch))}"
            return inputs[tensors[0]]
        if self._arguments.may_take_dict:
            return inputs
        raise ValueError(
            f"the model's forward takes {self._arguments.named()}, and a batch is a dict with "
            f"{listed(map(str, batch))}: name the tensor that it takes {', '.join(_TENSORS[:-1])} or {_TENSORS[-1]}, "
            f"or {_FORWARD}"
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


class _Arguments:
    """What a model's forward takes, by its signature, or that of the module that it passes everything on to.

    Attributes:
        is_dict: its one argument is annotated as a dict.
        may_take_dict: it has one argument that must be given, and nothing says that it is a tensor.
    """

    def __init__(self, model: nn.Module):
        try:
            self._signature = _signature(model)
        except (TypeError, ValueError):  # a scripted module: all that is known is that keywords are passed on
            self._signature = inspect.signature(lambda **inputs: inputs)
        parameters = self._signature.parameters.values()
        self._names = {each.name for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)}
        self._takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
        required = [each for each in parameters if each.name in self._names and each.default is each.empty]
        one = required[0] if len(required) == 1 and required[0].kind is not inspect.Parameter.KEYWORD_ONLY else None
        annotation = "" if one is None or one.annotation is one.empty else _text(one.annotation)
        self.is_dict = bool(_TAKES_DICT.search(annotation))
        self.may_take_dict = one is not None and (self.is_dict or annotation in ("", "Any", "typing.Any"))

    def has_names_of(self, inputs: Mapping[Any, Any]) -> bool:
        """Whether these are keyword arguments of it."""
        if self.is_dict or not all(isinstance(key, str) for key in inputs):
            return False
        if self._names and self._names.isdisjoint(inputs):
            return False  # they would vanish among others, **kwargs
        try:
            self._signature.bind(**inputs)
        except TypeError:
            return False
        return True

    def may_be(self, key: Any, value: Any) -> bool:
        """Whether an entry of a dict is for the model: a name of a file, or a text that was tokenized, is not."""
        return key in self._names or any(True for _ in _tensors_or_numbers(value))

    def named(self) -> str:
        return listed([each for each in self._signature.parameters if each != "self"]) or "nothing"


def embedding_in(output: Any) -> Tensor:
    """The embedding in what a model returned: the tensor itself, or the one that its name tells among several.

    Raises:
        ValueError: where there is none, or where several could be meant.
    """
    if isinstance(output, Tensor):
        return output
    found = {name: each for name, each in _entries(output) if isinstance(each, Tensor)}
    for names in _EMBEDDINGS:
        present = [name for name in names if name in found]
        if len(present) == 1:
            return found[present[0]]
        if present:
            break
    kind = type(output).__name__
    if "last_hidden_state" in found and not any(name in found for names in _EMBEDDINGS for name in names):
        raise ValueError(
            f"the model returns a {kind} with last_hidden_state, a vector for each token or patch, and no embedding of "
            "a sample: give forward=, such as lambda model, batch: model(**batch).last_hidden_state[:, 0] for that of "
            "the first token, or the mean over the tokens that are there (attention_mask)"
        )
    if len(found) == 1:
        return next(iter(found.values()))
    if not found:
        raise ValueError(f"the model returns a {kind}, not a tensor: {_FORWARD}")
    what = listed(f"{name} {tuple(each.shape)}" for name, each in found.items())
    raise ValueError(f"the model returns a {kind} with {what}, any of which may be meant: {_FORWARD}")


def _entries(output: Any) -> Iterator[tuple[str, Any]]:
    """The parts of an output with their names; of a plain tuple or list with their numbers."""
    if isinstance(output, Mapping):
        yield from ((str(name), each) for name, each in output.items())
    elif isinstance(output, (tuple, list)):
        names = getattr(output, "_fields", None) or map(str, range(len(output)))
        yield from zip(names, output, strict=True)


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


# --- small questions


def _signature(model: nn.Module) -> inspect.Signature:
    """Of a model's forward; of a wrapper that passes on all it is given, such as peft's, that of what is inside."""
    found = inspect.signature(model.forward)
    children = list(model.children())
    if len(children) == 1 and {each.kind for each in found.parameters.values()} == {
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    }:
        return _signature(children[0])
    return found


def _text(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "") or str(annotation)


def _tensors_or_numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, (Tensor, bool, int, float)):
        yield value
    elif isinstance(value, (Mapping, tuple, list)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors_or_numbers(each)
