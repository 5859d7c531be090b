"""The embedding in what a model returns, as models of transformers and Sentence Transformers return it.

Shapes: n samples; an embedding is (n, ...).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from tripletmas.basics.sentences import listed, with_article

REMEDY = "give forward=, a function (model, batch) -> embeddings"
# What an embedding is called, the surest first.
_NAMES = (("sentence_embedding",), ("image_embeds", "text_embeds"), ("pooler_output",), ("logits",))
_OF_TOKENS = "last_hidden_state"


def embedding_in(output: Any) -> Tensor:
    """The embedding in what a model returned: the tensor itself, or the one that its name tells among several.

    Raises:
        ValueError: where there is none, or where several could be meant.
    """
    if isinstance(output, Tensor):
        return output
    found = {name: each for name, each in _entries(output) if isinstance(each, Tensor)}
    meant = _meant(found)
    if len(meant) == 1:
        return found[meant[0]]
    kind = type(output).__name__
    if not found:
        raise ValueError(f"the model returns {with_article(kind)}, not a tensor: {REMEDY}")
    if _OF_TOKENS in found and not meant:
        raise ValueError(
            f"the model returns {with_article(kind)} with {_OF_TOKENS}, a vector for each token or patch, and no "
            f"embedding of a sample: give forward=, such as lambda model, batch: model(**batch).{_OF_TOKENS}[:, 0] "
            "for that of the first token, or the mean over the tokens that are there (attention_mask)"
        )
    what = listed(f"{name} {tuple(each.shape)}" for name, each in found.items())
    raise ValueError(f"the model returns {with_article(kind)} with {what}, any of which may be meant: {REMEDY}")


def _meant(found: Mapping[str, Tensor]) -> list[str]:
    """Which of these could be the embedding; of several without a known name, none."""
    known = ([name for name in names if name in found] for names in _NAMES)
    some = next(filter(None, known), [])
    return some or [name for name in found if len(found) == 1 and name != _OF_TOKENS]


def _entries(output: Any) -> Iterator[tuple[str, Any]]:
    """The parts of an output with their names; of a plain tuple or list with their numbers."""
    if isinstance(output, Mapping):
        yield from ((str(name), each) for name, each in output.items())
    elif isinstance(output, (tuple, list)):
        names = getattr(output, "_fields", None) or map(str, range(len(output)))
        yield from zip(names, output, strict=True)
