"""The model that embeds what is asked with: bytes of an image, or a text, become vectors.

Shapes: n samples, dim.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tripletmas.data.dataset import LabelledDataset
from tripletmas.data.decoding import decode, open_image, reason_of
from tripletmas.data.images import ImageFiles
from tripletmas.data.preparation import Preparation
from tripletmas.data.tokens import Texts, Tokenizer

if TYPE_CHECKING:
    from tripletmas.runs.models import RunModel

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # none of them asks another program to decode it
MAX_PIXELS = 64_000_000  # of what a stranger uploads: three bytes of memory for each, and as many again on the way

_TRIALS, _GAIN = 3, 0.95

Sample = Tensor | str


def cheapest(took: Callable[[int], float]) -> int:
    """The number of 1, 2, 4, ..., 32 that took least time for each, tried as long as more of them gain 5 %.

    Args:
        took: a number -> the time for each of so many.
    """
    best, least = 1, took(1)
    for count in (2, 4, 8, 16, 32):
        own = took(count)
        if own > _GAIN * least:
            break
        best, least = count, own
    return best


class Encoder:
    """A model in eval mode and the way to it; one thread at a time may embed, any number may read.

    Args:
        invert: black is shown as white, and white as black.

    Attributes:
        device: where the model is.
    """

    def __init__(self, model: RunModel, *, invert: bool = False):
        self.model, self.invert = model, invert
        model.model.eval()
        first = next(model.model.parameters(), None)
        self.device = torch.device("cpu") if first is None else first.device

    @property
    def of_texts(self) -> bool:
        """Whether it reads texts, and no images."""
        return isinstance(self.model.shown, Tokenizer)

    @cached_property
    def together(self) -> int:
        """How many samples it embeds at once in the least time for each, by trying it here; at most 32."""
        sample = "a text of a few words" if self.of_texts else torch.randint(0, 256, self.model.prepared.shape).byte()

        def took(count: int) -> float:
            times = []
            for _ in range(_TRIALS):
                begun = time.perf_counter()
                self.embed([sample] * count)
                times.append(time.perf_counter() - begun)
            return min(times) / count

        return cheapest(took)

    def shown(self) -> str:
        """How an image, or a text, becomes what the model is shown, in words."""
        shown = self.model.shown
        if isinstance(shown, Tokenizer):
            return f"at most {shown.max_length} tokens, by the tokenizer {shown.identity[:12]}"
        words = [str(shown)]
        if self.model.mean is not None and self.model.deviation is not None:
            pairs = zip(self.model.mean, self.model.deviation, strict=True)
            words.append("normalised by " + " ".join(f"{mean:.3g}/{deviation:.3g}" for mean, deviation in pairs))
        return ", ".join([*words, *(["inverted"] if self.invert else [])])

    def read(self, content: bytes) -> Tensor:
        """The pixels (channels, height, width) of an uploaded image, uint8.

        Raises:
            ValueError: with the reason, where it cannot be read.
        """
        try:
            with open_image(io.BytesIO(content), most=MAX_PIXELS, formats=FORMATS) as image:
                return decode(image, self.model.prepared)
        except Exception as error:  # Pillow reports a broken file with many types, MemoryError among them
            raise ValueError(reason_of(error)) from None

    def read_file(self, path: str) -> Tensor:
        """The same of a file of the gallery; a ValueError names it where it cannot be read."""
        return ImageFiles.at([path], self.model.prepared)[0]

    def embed(self, samples: Sequence[Sample]) -> Tensor:
        """Raw vectors (n, dim) float32 on the CPU; of images as `read` gives them, or of texts. May hold nan."""
        data = self._dataset(samples)
        vectors = [self._embed(data, range(i, min(i + self._step, len(data)))) for i in range(0, len(data), self._step)]
        return torch.cat(vectors)

    @property
    def _step(self) -> int:
        return self.model.batch_size

    def _embed(self, data: LabelledDataset, positions: range) -> Tensor:
        batch, _ = data[positions]
        with torch.inference_mode():
            return self.model.model((1 - batch if self.invert else batch).to(self.device)).to("cpu", torch.float32)

    def _dataset(self, samples: Sequence[Sample]) -> LabelledDataset:
        none = torch.zeros(len(samples))
        if isinstance(self.model.shown, Preparation):
            return LabelledDataset(torch.stack([each for each in samples if isinstance(each, Tensor)]), none, ["none"])
        texts = [each for each in samples if isinstance(each, str)]
        return LabelledDataset(Texts(texts, self.model.shown), none, ["none"], texts=texts)
