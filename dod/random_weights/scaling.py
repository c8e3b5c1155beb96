"""Random weights that behave like trained ones: every layer's output brought to a stated deviation on real images.

Layer-sequential unit variance (Mishkin and Matas 2016, "All you need is a good init"), in a single forward pass: a
layer is rescaled when it has run, before its successors see what it gives. A default initialisation leaves residual
branches two orders of magnitude under their stream, so precision and folding errors would not show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import CrossAttnUpBlock2D
from torch import Tensor, nn

CHANNEL_SPREAD = 0.3
"""Deviation of the logarithm of a layer's gain from one output channel to the next."""
SEEN = 8192
"""About so many positions of each image take part in a fit."""
BRANCH, EMBEDDING = 0.5, 0.3
"""Deviation of what a residual branch adds, and of what a time embedding adds or multiplies. Elsewhere 1."""

CARRIED = 0.3
"""The share of the latent that the carrying channels hold, where the others have a deviation of 1."""

IMAGE_DEPENDENT = 0.3
"""What the last shortcut keeps of the stream that no normalisation has made independent of the image's contrast."""

BRANCH_ENDS = ("conv2", "to_out.0", "ff.net.2", "proj_out", "out_layers.3")
EMBEDDINGS = ("time_emb_proj", "emb_layers.1")
PASSAGES = ("conv_shortcut", "skip_connection", "downsamplers.0.conv", "upsamplers.0.conv")
"""Layers that the whole residual stream goes through: they leave its deviation as it is."""

Layer = nn.Linear | nn.Conv1d | nn.Conv2d


def layers(model: nn.Module) -> Iterator[tuple[str, Layer]]:
    """(name, layer) of each linear and convolutional layer, in module order."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            yield name, module


@torch.no_grad()
def rescale(model: nn.Module, run: Callable[[], object], generator: torch.Generator) -> None:
    """Give every layer that `run` passes through its deviation, in place; norms and biases get a spread as well.

    run: one forward pass of the model, in float32, on real images. Layers it does not reach are left as they are.
    """
    for module in model.modules():
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            module.weight.copy_(1 + 0.2 * _normal(module.weight, generator))
            module.bias.copy_(0.2 * _normal(module.bias, generator))
    for _, layer in layers(model):
        gains = (CHANNEL_SPREAD * torch.randn(len(layer.weight), generator=generator)).exp()
        layer.weight.mul_(gains.reshape(-1, *[1] * (layer.weight.ndim - 1)))
        if layer.bias is not None:
            layer.bias.copy_(_normal(layer.bias, generator))

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
        def rescaled(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            layer = cast(Layer, module)
            target = _target(name, inputs[0])
            bias = None if layer.bias is None else _along_channels(layer, layer.bias, output)
            plain = output if bias is None else output - bias
            factor = target / plain.std().clamp_min(1e-12)
            layer.weight.mul_(factor)
            if bias is None:
                return plain * factor
            cast(Tensor, layer.bias).mul_(0.1 * target)
            return plain * factor + bias * 0.1 * target

        return rescaled

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers(model)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def fit(layer: nn.Conv2d, features: Sequence[Tensor], targets: Sequence[Tensor], ridge: float = 1e-3) -> None:
    """Ridge regression of a last convolution (kernel and bias), in place, so that it maps features to targets.

    features: [B, C_in, H, W] each, the layer's inputs; targets: [B, C_out, H, W] each, float32. Solved by the
    normal equations; ridge is relative to the features' mean square.
    """
    size = layer.weight[0].numel() + 1
    gram, moment = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, layer.out_channels).double()
    for x, y in zip(features, targets, strict=True):
        rows = F.unfold(x, cast(tuple[int, int], layer.kernel_size), padding=1).transpose(1, 2).flatten(0, 1)
        step = 1 + len(rows) // SEEN | 1  # odd, so that it does not keep to a few columns of the image
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)[::step]
        gram += rows.T @ rows
        moment += rows.T @ y.flatten(2).transpose(1, 2).flatten(0, 1)[::step]
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    solution = torch.linalg.solve(gram, moment).T
    layer.weight.copy_(solution[:, :-1].reshape(layer.weight.shape))
    cast(Tensor, layer.bias).copy_(solution[:, -1])


@torch.no_grad()
def standardise(layer: nn.Conv2d, features: Tensor, means: Sequence[float], deviations: Sequence[float]) -> None:
    """Give each output channel of a convolution its mean and deviation over the features, in place."""
    output = layer(features)
    mean, deviation = output.mean((0, 2, 3)), output.std((0, 2, 3))
    factor = torch.tensor(deviations) / deviation.clamp_min(1e-12)
    bias = cast(Tensor, layer.bias)
    layer.weight.mul_(factor[:, None, None, None])
    bias.copy_((bias - mean) * factor + torch.tensor(means))


@torch.no_grad()
def carry(unet: UNet2DConditionModel, share: float = CARRIED) -> None:
    """Let a few channels of the outermost level carry the input to the last layer, z and -z side by side, in place.

    A trained UNet knows at t = 999 that eps is nearly its input; a random one has buried it. silu(x) - silu(-x) = x, so
    the last layer can read it. The channels lie in different groups of the last normalisation, which would divide the
    latent by its own deviation were they not weak beside others whose deviation depends little on the image: those
    that come out of normalised branches.
    """
    first, block = unet.conv_in, cast(CrossAttnUpBlock2D, unet.up_blocks[-1])
    resnet = cast(ResnetBlock2D, block.resnets[-1])
    attention, shortcut = cast(Transformer2DModel, block.attentions[-1]), cast(nn.Conv2d, resnet.conv_shortcut)
    latent, width = first.in_channels, first.out_channels
    chosen = [k * width // (2 * latent) for k in range(2 * latent)]
    for layer in (resnet.conv2, cast(nn.Linear, attention.proj_out), shortcut, first):
        layer.weight[chosen] = 0
        cast(Tensor, layer.bias)[chosen] = 0
    shortcut.weight.mul_(IMAGE_DEPENDENT)
    resnet.conv2.weight.mul_(1 / BRANCH)
    cast(nn.Linear, attention.proj_out).weight.mul_(1 / BRANCH)
    centre = first.kernel_size[0] // 2
    for k, channel in enumerate(chosen):
        first.weight[channel, k % latent, centre, centre] = share if k < latent else -share
        shortcut.weight[channel, shortcut.in_channels - width + channel] = 1


@contextmanager
def inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what the layer is given while the block runs."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def deviations(model: nn.Module, run: Callable[[], object]) -> dict[str, tuple[float, float]]:
    """(deviation, largest magnitude) of each layer's output by its name, in one forward pass."""
    found: dict[str, tuple[float, float]] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def measure(_: nn.Module, __: tuple[Tensor], output: Tensor) -> None:
            found[name] = float(output.std()), float(output.abs().max())

        return measure

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers(model)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _target(name: str, x: Tensor) -> float:
    if name.endswith(PASSAGES):
        return float(x.std())
    if name.endswith(BRANCH_ENDS):
        return BRANCH
    return EMBEDDING if name.endswith(EMBEDDINGS) else 1.0


def _along_channels(layer: Layer, values: Tensor, output: Tensor) -> Tensor:
    """Values of the channels [C], a copy in a shape that broadcasts with the layer's output."""
    return values.clone().reshape(-1, *[1] * (0 if isinstance(layer, nn.Linear) else output.ndim - 2))


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator)
