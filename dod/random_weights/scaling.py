"""Random weights that behave like trained ones: the output of each layer is scaled on photographs.

Layer-sequential unit variance (Mishkin and Matas 2016, "All you need is a good init") in a single forward pass: a layer
is rescaled right after it ran, before the next layer gets its output. A default initialization leaves residual branches
two orders of magnitude weaker than their stream, so errors of precision and of graph rewrites would not show.
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

__all__ = ["carry", "deviations", "fit", "inputs_of", "layers", "rescale", "standardise"]

CHANNEL_SPREAD = 0.3
"""Standard deviation of the logarithm of a layer's gain over its output channels."""
SEEN = 8192
"""Approximate number of positions of each image that a fit uses."""
BRANCH, EMBEDDING = 0.5, 0.3
"""Standard deviations of the output of a residual branch and of a projected time embedding. Other layers have 1."""

CARRIED = 0.3
"""Scale of the latent in the channels that carry it, where other channels have a standard deviation of 1."""

IMAGE_DEPENDENT = 0.3
"""Factor of the last shortcut, whose input depends on the contrast of the image because it is not normalized."""

BRANCH_ENDS = ("conv2", "to_out.0", "ff.net.2", "proj_out", "out_layers.3")
EMBEDDINGS = ("time_emb_proj", "emb_layers.1")
PASSAGES = ("conv_shortcut", "skip_connection", "downsamplers.0.conv", "upsamplers.0.conv")
"""Layers in the residual stream, which keep its standard deviation."""

Layer = nn.Linear | nn.Conv1d | nn.Conv2d


def layers(model: nn.Module) -> Iterator[tuple[str, Layer]]:
    """Yield the linear and convolutional layers of a model in module order.

    Args:
        model: the model.

    Yields:
        Name and layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            yield name, module


@torch.no_grad()
def rescale(model: nn.Module, run: Callable[[], object], generator: torch.Generator) -> None:
    """Scale the layers of a model, in place, so that their outputs have the intended standard deviations.

    Norms and biases get random values.

    Args:
        model: the model.
        run: function that runs the model once, in float32, on photographs. Layers that it does not run do not change.
        generator: random generator.
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
    """Fit kernel and bias of a convolution to targets, in place, by ridge regression with the normal equations.

    Args:
        layer: the convolution.
        features: inputs of the layer, [B, C_in, H, W] float32 each.
        targets: outputs that it should have, [B, C_out, H, W] float32 each.
        ridge: regularization relative to the mean square of the features.
    """
    size = layer.weight[0].numel() + 1
    gram, moment = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, layer.out_channels).double()
    for x, y in zip(features, targets, strict=True):
        rows = F.unfold(x, cast(tuple[int, int], layer.kernel_size), padding=1).transpose(1, 2).flatten(0, 1)
        step = 1 + len(rows) // SEEN | 1  # odd, so that all columns of the image are used
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)[::step]
        gram += rows.T @ rows
        moment += rows.T @ y.flatten(2).transpose(1, 2).flatten(0, 1)[::step]
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    solution = torch.linalg.solve(gram, moment).T
    layer.weight.copy_(solution[:, :-1].reshape(layer.weight.shape))
    cast(Tensor, layer.bias).copy_(solution[:, -1])


@torch.no_grad()
def standardise(layer: nn.Conv2d, features: Tensor, means: Sequence[float], deviations: Sequence[float]) -> None:
    """Scale and shift the output channels of a convolution, in place, to given means and standard deviations.

    Args:
        layer: the convolution.
        features: its inputs, [B, C_in, H, W].
        means: mean of each output channel.
        deviations: standard deviation of each output channel.
    """
    output = layer(features)
    mean, deviation = output.mean((0, 2, 3)), output.std((0, 2, 3))
    factor = torch.tensor(deviations) / deviation.clamp_min(1e-12)
    bias = cast(Tensor, layer.bias)
    layer.weight.mul_(factor[:, None, None, None])
    bias.copy_((bias - mean) * factor + torch.tensor(means))


@torch.no_grad()
def carry(unet: UNet2DConditionModel, share: float = CARRIED) -> None:
    """Make a few channels of the outermost level carry z and -z from the input to the last layer, in place.

    At t = 999 a trained UNet predicts an eps that is nearly its input, which a random UNet has lost. The last layer can
    recover z from z and -z, because silu(x) - silu(-x) = x. The last normalization would divide z by its own standard
    deviation. The channels are therefore spread over its groups and weak compared with the others, whose standard
    deviation depends little on the image because they come from normalized branches.

    Args:
        unet: the UNet.
        share: scale of z in these channels.
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
    center = first.kernel_size[0] // 2
    for k, channel in enumerate(chosen):
        first.weight[channel, k % latent, center, center] = share if k < latent else -share
        shortcut.weight[channel, shortcut.in_channels - width + channel] = 1


@contextmanager
def inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the inputs of a layer while the `with` block runs.

    Args:
        layer: the layer.

    Yields:
        The list that the inputs are appended to.
    """
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def deviations(model: nn.Module, run: Callable[[], object]) -> dict[str, tuple[float, float]]:
    """Measure the outputs of the layers in one forward pass.

    Args:
        model: the model.
        run: function that runs the model once.

    Returns:
        Standard deviation and largest magnitude of each layer's output, by name.
    """
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
    """Return a copy of values by channel, [C], in a shape that broadcasts with the output of the layer."""
    return values.clone().reshape(-1, *[1] * (0 if isinstance(layer, nn.Linear) else output.ndim - 2))


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator)
