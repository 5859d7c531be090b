"""Models of texts: a sentence encoder of Sentence Transformers, without the normalisation at its end.

What such a model is given is what its own tokenizer makes of texts (`data.tokens`), so the two are one thing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tripletmas.basics.logs import errors_only
from tripletmas.basics.sentences import listed
from tripletmas.data.tokens import Tokenizer

logger = logging.getLogger(__name__)

PREFIX = "sentence-transformers:"
DEFAULTS = {"training.lr": 5e-5, "training.eval_batch_size": 64}  # such a model is trained already, and is large
_DESCRIBING = (".json", ".jinja", ".model", ".txt")  # endings of files that say what a model is, beside its weights
_NO_DESCRIPTION = ("config_sentence_transformers.json", "data_config.json")  # versions and training data
_ENDS = ("Pooling", "Dense", "Dropout", "LayerNorm")
_MAKING = "sentence_transformers."  # whose modules a model may consist of
# Whatever tells tokenizers of equal vocabulary apart: case, accents, punctuation, numbers, other scripts, spaces.
_PROBE = "Où est mon colis N° 1234567?  It's LATE - naïve café_au_lait, 北京 Привет (a/b) \t e-mail@x.org … 12,50 €"


class TextEncoder(nn.Module):
    """Texts (batch, 2, length), ids of tokens and which of them are there, -> raw embeddings (batch, dim).

    For a model of one's own: a function `(sample_shape, *, options)` that returns one of these takes texts.

    Args:
        network: called as network(ids, mask), both (batch, length) int64; returns (batch, dim).
        tokenizer: makes the ids.
        pad: the id that stands where no token is.
        source: what a run keeps of where the model is from: options of its constructor, to be found the same again.
    """

    def __init__(self, network: nn.Module, tokenizer: Tokenizer, *, pad: int, source: Mapping[str, str] | None = None):
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        self.pad = pad
        self.source = dict(source or {})

    def forward(self, texts: Tensor) -> Tensor:
        ids, mask = texts.unbind(dim=1)
        return self.network(torch.where(mask == 1, ids, self.pad), mask)


def text_encoder_of(model: nn.Module) -> TextEncoder | None:
    """What in a model reads texts; None in a model that does not."""
    return next((module for module in model.modules() if isinstance(module, TextEncoder)), None)


def sentence_encoder(
    sample_shape: tuple[int, ...],
    *,
    name: str,
    dim: int | None = None,
    max_length: int | None = None,
    prompt: str | None = None,
    sha256: str | None = None,
) -> nn.Module:
    """A model of Sentence Transformers, whose embedding is what it gives before it normalises.

    It starts from its own weights, which a run then changes, and reads texts by its own tokenizer. Weights that do
    nothing to the embedding, as those of an unused pooler, are taken out or frozen. No code comes with a model.

    Args:
        sample_shape: () of texts.
        name: `sentence-transformers:` and a folder, as its `save` writes one, or a name on the Hugging Face hub, which
            is downloaded on first use.
        dim: length of the embedding, by a new linear layer at the end; null takes the embedding as it is.
        max_length: tokens that are read of a text; null is the model's own number.
        prompt: put before each text; null is the model's own, which most do not have.
        sha256: of the files that say what the model is, without its weights; filled in when a run begins, and another
            model, or another tokenizer, is then an error. null takes what is there.

    Raises:
        ValueError: where samples are no texts; for a folder that holds no such model, one whose files are not those of
            sha256, a tokenizer without a padding token, a max_length that the model has no positions for.
    """
    what = name.removeprefix(PREFIX)
    if sample_shape:
        raise ValueError(f"{name} reads texts, and the data have samples of shape {sample_shape}: choose another model")
    folder = _folder(what, fetch=sha256 is None)
    found = _sha256(folder)
    if sha256 not in (None, found):
        raise ValueError(
            f"{folder} is not the model that the run began with (SHA-256 {found[:12]}, not {sha256[:12]}): its "
            "configuration or its tokenizer has changed; put the old files back"
        )
    encoder, tokenizer, longest = _loaded(folder)
    length = longest if max_length is None else max_length
    if not 3 <= length <= longest:
        raise ValueError(f"max_length must lie between 3 and {longest}, the tokens that {what} reads, got {length}")
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):  # transformers makes such a one up
        raise ValueError(
            f"the tokenizer of {what} knows no words: its files are missing (tokenizer.json, or the vocabulary that "
            "belongs to it), and every text would be the same to the model; put them back"
        )
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"the tokenizer of {what} has no padding token, so that texts of different lengths make no batch: name one "
            "(pad_token) in its tokenizer_config.json, such as its end token"
        )
    prompt = _prompt(encoder, what) if prompt is None else prompt
    network = _Sentence(list(encoder), what)
    used = _tokenizer(tokenizer, length, prompt)
    _leave_out_unused(network, torch.tensor(used.encode([_PROBE], True)))
    if dim is not None:
        network.head = nn.Linear(network.width(), _positive(dim))
    place = str(folder) if Path(what).exists() else what
    return TextEncoder(network, used, pad=tokenizer.pad_token_id, source={"name": f"{PREFIX}{place}", "sha256": found})


def save_encoder(encoder: TextEncoder, folder: Path, card: str) -> None:
    """Write a model of Sentence Transformers, with the weights that it has now, as its library reads it again.

    It ends in a normalisation; `sentence_encoder` takes it off again.

    Raises:
        ValueError: for a network of somebody's own, or if something is in the folder.
    """
    network = encoder.network
    if not isinstance(network, _Sentence):
        raise ValueError("a network of one's own is no model of Sentence Transformers: save its weights yourself")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: name another folder")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    modules: list[Any] = list(network.layers)
    if isinstance(network.head, nn.Linear):
        head = Dense(network.head.in_features, network.head.out_features, activation_function=nn.Identity())
        head.linear.load_state_dict(network.head.state_dict())
        modules.append(head)
    with _quiet():
        made = SentenceTransformer(modules=[*modules, Normalize()], device="cpu")
        made.max_seq_length = encoder.tokenizer.max_length
        made.save(str(folder), create_model_card=False, safe_serialization=True)
    (folder / "README.md").write_text(card, encoding="utf-8")


class _Sentence(nn.Module):
    """The modules of a sentence encoder one after the other, without normalisations at their end, and a head."""

    def __init__(self, modules: Sequence[nn.Module], what: str):
        super().__init__()
        kept = list(modules)
        while kept and type(kept[-1]).__name__ == "Normalize":
            kept.pop()
        names = [type(module).__name__ for module in kept]
        if not kept or names[0] != "Transformer" or names[-1] not in _ENDS:
            raise ValueError(
                f"{what} is no encoder of sentences known here: it consists of {', '.join(names) or 'nothing'}, "
                f"in place of a Transformer at first and one of {', '.join(_ENDS)} at last"
            )
        self.layers = nn.ModuleList(kept)
        self.head: nn.Module = nn.Identity()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        features: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        for layer in self.layers:
            features = layer(features)
        return self.head(features["sentence_embedding"])

    def width(self) -> int:
        """The length of the embedding that there is without a head."""
        one = torch.ones(1, 1, dtype=torch.int64)
        with torch.no_grad():
            return self(torch.zeros_like(one), one).shape[1]


def _folder(what: str, *, fetch: bool) -> Path:
    """The folder of a model that is named by it, or of one on the hub, where it was fetched to.

    Args:
        fetch: it if it is not here yet; what a run names is not, which may be somebody else's.
    """
    folder = Path(what).expanduser()
    if folder.is_dir():
        folder = folder.absolute()
        if not (folder / "modules.json").is_file():
            raise ValueError(f"{folder} is no sentence-transformers model: it has no modules.json")
        _refuse_code(folder)
        return folder
    if folder.is_absolute() or what.startswith(".") or what.count("/") > 1:
        raise ValueError(
            f"no such folder: {what} (configuration and tokenizer of the model are read from it: put it back, or "
            "a link to where it is now)"
        )
    return _of_hub(what, fetch=fetch)


def _of_hub(what: str, *, fetch: bool) -> Path:
    """Where a model of the hub lies here."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise _missing() from None
    repository = what if "/" in what else f"sentence-transformers/{what}"
    patterns = [f"*{ending}" for ending in (*_DESCRIBING, ".safetensors")]
    try:
        options: dict[str, Any] = {"allow_patterns": patterns, "ignore_patterns": ["onnx/*", "openvino/*"]}
        folder = Path(snapshot_download(repository, **options, local_files_only=not fetch))
    except Exception as error:  # the hub's client, and what it uses, raise many types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"there is no folder {what}, and {repository} cannot be fetched from the hub ({reason}): name a folder"
        ) from None
    if not (folder / "modules.json").is_file():
        raise ValueError(f"{repository} is no sentence-transformers model: it has no modules.json")
    _refuse_code(folder)
    return folder


def _refuse_code(folder: Path) -> None:
    """Raises ValueError if a model consists of other modules than those of Sentence Transformers itself."""
    try:
        types = [str(module["type"]) for module in json.loads((folder / "modules.json").read_text("utf-8"))]
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{folder}/modules.json cannot be understood ({error})") from None
    foreign = [each for each in types if not each.startswith(_MAKING)]
    if foreign:
        raise ValueError(f"{folder} has modules with code of their own, which is not executed: {listed(foreign)}")


def _sha256(folder: Path) -> str:
    """Of the files of a model that say what it is, by their names; weights change as a run learns."""
    digest = hashlib.sha256()
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.suffix in _DESCRIBING}
    for name in sorted(files.keys() - {*_NO_DESCRIPTION}):
        content = files[name].read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _loaded(folder: Path) -> tuple[nn.Sequential, Any, int]:
    """(the encoder in float32, its tokenizer, the most tokens that it reads)."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise _missing() from None
    try:
        with _quiet():
            encoder = SentenceTransformer(
                str(folder),
                device="cpu",
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            ).float()
            tokenizer = encoder.tokenizer
    except Exception as error:  # of a folder that is something else, the libraries raise many types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "ignore_mismatched_sizes" in reason:  # what it refers to is a table that it logs
            reason = "its weights have other sizes than its configuration says"
        raise ValueError(f"{folder} is no sentence-transformers model that can be read: {reason}") from None
    return encoder, tokenizer, int(encoder.max_seq_length or tokenizer.model_max_length)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the libraries tell of loading and writing weights, which takes no time."""
    from transformers.utils import logging as messages

    bars = messages.is_progress_bar_enabled()
    messages.disable_progress_bar()
    try:
        with errors_only("sentence_transformers"):
            yield
    finally:
        if bars:
            messages.enable_progress_bar()


def _prompt(encoder: Any, what: str) -> str:
    """What the model puts before each text when nobody says so."""
    prompt = encoder.prompts.get(encoder.default_prompt_name, "") if encoder.default_prompt_name else ""
    if prompt and not all(getattr(module, "include_prompt", True) for module in encoder):
        raise ValueError(f"{what} leaves its prompt {prompt!r} out of its pooling, which is not known here: set prompt")
    return prompt


def _tokenizer(tokenizer: Any, max_length: int, prompt: str) -> Tokenizer:
    """What a tokenizer of Hugging Face does, as a function that can be copied."""

    def encode(texts: Sequence[str], cut: bool) -> list[list[int]]:
        whole = [prompt + text for text in texts]
        most = max_length if cut else None
        return tokenizer(whole, truncation=cut, max_length=most, padding=False, verbose=False)["input_ids"]

    content = [sorted(tokenizer.get_vocab().items()), encode([_PROBE], False), prompt, max_length]
    return Tokenizer(encode, max_length, hashlib.sha256(json.dumps(content).encode()).hexdigest())


def _unused(network: _Sentence, ids: Tensor) -> set[str]:
    """The names of the weights that have no part in the embedding, as a gradient shows."""
    network.eval()
    network(ids, torch.ones_like(ids)).sum().backward()
    unused = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    network.zero_grad(set_to_none=True)
    network.train()
    return unused


def _leave_out_unused(network: _Sentence, ids: Tensor) -> None:
    """Take out poolers, and freeze other weights, that have no part in the embedding."""
    unused = _unused(network, ids)
    for path in [path for path, _ in network.named_modules() if path.endswith(".pooler")]:
        own = {f"{path}.{name}" for name, _ in network.get_submodule(path).named_parameters()}
        if own and own <= unused:
            parent, _, child = path.rpartition(".")
            setattr(network.get_submodule(parent), child, None)
            unused -= own
    for name in unused:
        network.get_parameter(name).requires_grad_(False)
    if unused:
        logger.info("%d weights that have no part in the embedding are frozen: %s", len(unused), listed(unused, 3))


def _positive(dim: int) -> int:
    if dim < 1:
        raise ValueError(f"dim must be >= 1, or null for the embedding as it is, got {dim}")
    return dim


def _missing() -> ValueError:
    return ValueError('a model of texts needs sentence-transformers: pip install "tripletmas[text]"')
