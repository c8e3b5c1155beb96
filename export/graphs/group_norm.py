"""GroupNorm written as means of means, which keep their precision in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["split_sums"]


class _OneGroupNorm(nn.GroupNorm):
    """GroupNorm of one group as means of means: first over rows, then over the rest.

    Below opset 21 the exporter writes an InstanceNormalization whose one channel holds all channels of the image. ONNX
    Runtime sums its millions of values in sequence on one thread: 108 dB SNR and 0.11 s for 16 channels of 512 x 512
    with a mean of 25. These means reach 124 dB in 0.04 s.
    """

    def forward(self, input: Tensor) -> Tensor:
        return self._scaled(_normalized(input, self.eps))

    def _scaled(self, normalized: Tensor) -> Tensor:
        shape = (-1, *(1 for _ in normalized.shape[2:]))
        return normalized * self.weight.view(shape) + self.bias.view(shape)


class _SplitGroupNorm(_OneGroupNorm):
    """GroupNorm of several groups as means of means.

    In the autoencoder of Stable Diffusion a group holds a million values at 512 px. For 4 channels of 512 x 512 with a
    mean of 25, InstanceNormalization reaches 91 dB SNR in ONNX Runtime (106 dB at 256 x 256), these means 132 dB. The
    latent of a full-size encoder improves from 97 to 110 dB in ONNX Runtime and from 97 to 107 dB in OpenVINO, at the
    same speed.
    """

    def forward(self, input: Tensor) -> Tensor:
        groups = input.unflatten(1, (self.num_groups, -1)).flatten(0, 1)
        return self._scaled(_normalized(groups, self.eps).unflatten(0, (-1, self.num_groups)).flatten(1, 2))


def _normalized(x: Tensor, epsilon: float) -> Tensor:
    """Normalize each item of a batch [B, ...] to mean 0 and variance 1."""
    centered = x - _mean(x)
    return centered * torch.rsqrt(_mean(centered * centered) + epsilon)


def _mean(x: Tensor) -> Tensor:
    """Return the mean of each item: [B, ...] -> [B, 1, ...]."""
    return x.mean(dim=-1, keepdim=True).mean(dim=tuple(range(1, x.ndim - 1)), keepdim=True)


def split_sums(module: nn.Module, several: bool) -> None:
    """Replace the GroupNorms of a module by means of means, in place. Parameters and their names stay.

    Args:
        module: The module.
        several: Replace GroupNorms of several groups too, not only those of one.
    """
    for each in module.modules():
        if type(each) is nn.GroupNorm and (several or each.num_groups == 1):
            # a change of class keeps the parameters and their names
            each.__class__ = _OneGroupNorm if each.num_groups == 1 else _SplitGroupNorm
