"""Exact simplifications: constants of the one step and consecutive linear layers are folded into the weights.

`simplify` makes the model smaller, in place, before it is measured or traced; `simplify_merged` does the same for a
merged UNet. Each fold is exact in real arithmetic, image borders included, and is computed in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from dod.model import clora
from dod.model.adm import ADMEncoder, ResBlock
from dod.model.detail import SCALE, DenseBlock, DetailEnhancement
from dod.model.dod import DOD, Encoder, OneStepUNet
from dod.model.modulation import DiffusersHSpace

__all__ = [
    "attentions",
    "fold_details",
    "fold_encoder",
    "fold_h_space",
    "fold_timestep",
    "fold_upsampling",
    "simplify",
    "simplify_merged",
]


@torch.no_grad()
def simplify(model: DOD) -> None:
    """Apply every fold that is exact on all condition paths, in place.

    Both time embeddings, the encoder's last layers, the detail modules and the upsampling convolutions are folded.

    Args:
        model: The model.
    """
    fold_timestep(model.unet)
    model.mfm.h_space = fold_h_space(model.mfm.h_space)
    model.encoder = fold_encoder(model.encoder)
    fold_details(model)
    fold_upsampling(model.unet)
    fold_upsampling(model.decoder)


def simplify_merged(unet: OneStepUNet) -> None:
    """Apply the folds that are exact only on a merged path, in place.

    The bias of K adds the same value to all scores of a query, so the softmax cancels it. The weights of the softmax
    sum to 1, so the bias of V moves into `to_out`. K and V of the prompt are constants. The bias of Q stays.

    Args:
        unet: A UNet without LoRA, from `clora.merged_copy`. On the meta device only its structure changes.
    """
    for _, attention in attentions(unet.unet):
        projections = (cast(nn.ModuleList, attention.to_out)[0], attention.to_k, attention.to_v)
        out, to_k, to_v = (cast(nn.Linear, each) for each in projections)
        shift = out.weight.double() @ to_v.bias.double()
        out.bias = _like(out.bias, out.bias.double() + shift)
        to_k.register_parameter("bias", None)
        to_v.register_parameter("bias", None)
        if attention.is_cross_attention:
            attention.to_k = OfPrompt(to_k, unet.prompt)
            attention.to_v = OfPrompt(to_v, unet.prompt)


def attentions(unet: nn.Module) -> Iterator[tuple[str, Attention]]:
    """Yield the attention layers of a UNet.

    Args:
        unet: The UNet.

    Yields:
        Name and layer.
    """
    for name, module in unet.named_modules():
        if isinstance(module, Attention):
            yield name, module


class OfPrompt(nn.Module):
    """A projection of the fixed prompt as a constant: [B, T, D] -> `output` [1, T, C], repeated B times."""

    def __init__(self, layer: nn.Linear, prompt: Tensor) -> None:
        super().__init__()
        self.output = _like(layer.weight, nn.functional.linear(prompt.double(), layer.weight.double()))
        for hooks in clora.HOOKS:
            getattr(self, hooks).update(getattr(layer, hooks))

    def forward(self, x: Tensor) -> Tensor:
        return self.output.expand(x.shape[0], -1, -1)


class NoEmbedding(nn.Module):
    """Placeholder for a time embedding that was folded into the weights."""

    def forward(self, *inputs: object) -> None:
        return None


def fold_timestep(unet: OneStepUNet) -> None:
    """Fold the embedding of the fixed timestep into the bias of each block's first convolution, in place.

    Args:
        unet: The one-step UNet.
    """
    inner = unet.unet
    steps = torch.full((1,), unet.timestep, dtype=torch.long, device=unet.prompt.device)
    projected = inner.time_proj(steps).to(inner.time_embedding.linear_1.weight.dtype)
    _fold_embedding(inner, inner.time_embedding(projected))
    inner.time_embedding = NoEmbedding()


def fold_h_space(h_space: nn.Module) -> nn.Module:
    """Fold the time embedding of the DDPM's encoder, which is constant at t = 0.

    Diffusers' blocks add the embedding after the first convolution; ADM's blocks scale and shift a normalized result.

    Args:
        h_space: `DiffusersHSpace` or `ADMEncoder`. Its layers are changed in place.

    Returns:
        A module that calls the same layers without an embedding.
    """
    weight = next(h_space.parameters())
    nothing = torch.zeros(1, 3, 1, 1, dtype=weight.dtype, device=weight.device)
    if isinstance(h_space, ADMEncoder):
        embedding = h_space.embedding(nothing)
        for name, block in list(h_space.named_modules()):
            if isinstance(block, ResBlock):
                h_space.set_submodule(name, TimelessResBlock(block, embedding))
        return TimelessADM(h_space)
    embedding = cast(DiffusersHSpace, h_space).embedding(nothing)
    _fold_embedding(h_space, embedding)
    return TimelessHSpace(cast(DiffusersHSpace, h_space))


def _fold_embedding(model: nn.Module, embedding: Tensor) -> None:
    """Fold an embedding [1, E] into every `ResnetBlock2D`, which adds its projection at all positions."""
    for block in model.modules():
        if isinstance(block, ResnetBlock2D) and block.time_emb_proj is not None:
            conv = _base(block.conv1)
            assert conv.bias is not None and block.time_embedding_norm == "default" and not block.skip_time_act
            constant = block.time_emb_proj(nn.functional.silu(embedding))[0]
            conv.bias = _like(conv.bias, conv.bias.double() + constant.double())
            block.time_emb_proj = None


class TimelessHSpace(nn.Module):
    """`DiffusersHSpace` without its embedding: [B, 3, R, R] -> [B, C, R/2^k, R/2^k]."""

    def __init__(self, h_space: DiffusersHSpace) -> None:
        super().__init__()
        self.conv_in, self.down_blocks, self.mid_block = h_space.conv_in, h_space.down_blocks, h_space.mid_block
        self.channels = h_space.channels

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x, _ = block(hidden_states=x, temb=None)
        return self.mid_block(x, None)


class TimelessADM(nn.Module):
    """`ADMEncoder` without its embedding: [B, 3, R, R] -> [B, C, R/2^k, R/2^k]."""

    def __init__(self, h_space: ADMEncoder) -> None:
        super().__init__()
        self.input_blocks, self.middle_block = h_space.input_blocks, h_space.middle_block
        self.channels = h_space.channels

    def forward(self, x: Tensor) -> Tensor:
        for stage in (*self.input_blocks, self.middle_block):
            for layer in cast(nn.Sequential, stage):
                x = layer(x)
        return x


class TimelessResBlock(ResBlock):
    """ADM's block with constant scale s and shift t in its second normalization: g' = g (1 + s), b' = b (1 + s) + t."""

    def __init__(self, block: ResBlock, embedding: Tensor) -> None:
        nn.Module.__init__(self)
        self.down, self.in_layers = block.down, block.in_layers
        self.out_layers, self.skip_connection = block.out_layers, block.skip_connection
        scale, shift = block.emb_layers(embedding)[0].double().chunk(2)
        norm = cast(nn.GroupNorm, self.out_layers[0])
        norm.weight = _like(norm.weight, norm.weight.double() * (1 + scale))
        norm.bias = _like(norm.bias, norm.bias.double() * (1 + scale) + shift)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        return self.combine(x, self.out_layers[0])


def fold_encoder(encoder: Encoder) -> Encoder:
    """Merge the encoder's LoRA, and `quant_conv` and the scale into `conv_out`.

    All three are linear, and only the mean of the posterior is used, so half of the output channels are dropped.

    Args:
        encoder: The encoder. It is left unchanged.

    Returns:
        The folded encoder.
    """
    return FoldedEncoder(cast(Encoder, clora.merged_copy(encoder)))


class FoldedEncoder(Encoder):
    """`Encoder` whose last convolution returns the scaled mode."""

    def __init__(self, encoder: Encoder) -> None:
        nn.Module.__init__(self)
        self.scaling_factor, self.encoder = encoder.scaling_factor, encoder.encoder
        conv, quant = cast(nn.Conv2d, self.encoder.conv_out), encoder.quant_conv
        assert conv.bias is not None and quant.bias is not None
        wanted = quant.out_channels // 2
        mix = self.scaling_factor * quant.weight[:wanted, :, 0, 0].double()
        bias = mix @ conv.bias.double() + self.scaling_factor * quant.bias[:wanted].double()
        conv.weight = _like(conv.weight, torch.einsum("oc,cikl->oikl", mix, conv.weight.double()))
        conv.bias, conv.out_channels = _like(conv.bias, bias), wanted

    def latent(self, features: Tensor) -> Tensor:
        return self.encoder.conv_out(features).float()


def fold_details(model: DOD) -> None:
    """Fold the detail modules of the decoder, in place.

    The alignment of the skip is folded into the fusion that follows it (both are 1 x 1 convolutions), and the residual
    factor 0.2 of each dense block into its last convolution.

    Args:
        model: The model.
    """
    for i, module in enumerate(model.decoder.detail):
        model.decoder.detail[i] = FoldedDetail(cast(DetailEnhancement, module))
    for name, block in list(model.decoder.named_modules()):
        if isinstance(block, DenseBlock):
            model.decoder.set_submodule(name, FoldedDenseBlock(block))


class FoldedDetail(nn.Module):
    """`DetailEnhancement` with one 1 x 1 convolution on [F_e, F_d] instead of two."""

    def __init__(self, module: DetailEnhancement) -> None:
        super().__init__()
        align, fuse = module.align, module.fuse
        assert align.bias is not None and fuse.bias is not None
        on_aligned, on_decoded = fuse.weight[:, :, 0, 0].double().split(align.out_channels, dim=1)
        weight = torch.cat([on_aligned @ align.weight[:, :, 0, 0].double(), on_decoded], dim=1)
        self.fuse = nn.Conv2d(weight.shape[1], fuse.out_channels, 1, device="meta")
        self.fuse.weight = _like(fuse.weight, weight[:, :, None, None])
        self.fuse.bias = _like(fuse.bias, fuse.bias.double() + on_aligned @ align.bias.double())
        self.body, self.weight = module.body, module.weight

    def forward(self, encoded: Tensor, decoded: Tensor) -> Tensor:
        return decoded + self.weight * self.body(self.fuse(torch.cat([encoded, decoded], dim=1)))


class FoldedDenseBlock(nn.Module):
    """`DenseBlock` whose last convolution includes the factor `SCALE`."""

    def __init__(self, block: DenseBlock) -> None:
        super().__init__()
        self.convs = block.convs
        last = cast(nn.Conv2d, self.convs[-1])
        assert last.bias is not None
        last.weight = _like(last.weight, SCALE * last.weight.double())
        last.bias = _like(last.bias, SCALE * last.bias.double())

    def forward(self, x: Tensor) -> Tensor:
        features = x
        for conv in self.convs[:-1]:
            features = torch.cat([features, nn.functional.leaky_relu(conv(features), 0.2)], dim=1)
        return x + self.convs[-1](features)


def fold_upsampling(model: nn.Module) -> None:
    """Replace nearest-neighbor upsampling and its 3 x 3 convolution by one transposed convolution, in place.

    The transposed convolution is 4 x 4 with stride 2: an output pixel takes 4 multiply-adds per input channel instead
    of 9. If the convolution has LoRA, the factor A is replaced in the same way.

    Args:
        model: The UNet or decoder.
    """
    for upsampler in model.modules():
        if isinstance(upsampler, Upsample2D) and not upsampler.use_conv_transpose:
            conv = upsampler.conv
            assert upsampler.norm is None and upsampler.interpolate and conv is not None
            if isinstance(conv, clora.LoraLayer):
                conv.base_layer = _doubling(_base(conv))
                conv.lora_A[clora.ADAPTER] = _doubling(cast(nn.Conv2d, conv.lora_A[clora.ADAPTER]))
            else:
                upsampler.conv = _doubling(cast(nn.Conv2d, conv))
            upsampler.use_conv_transpose = True


def _doubling(conv: nn.Conv2d) -> nn.ConvTranspose2d:
    """Return the transposed convolution that equals nearest-neighbor doubling followed by a 3 x 3 convolution.

    Its 4 x 4 kernel is the sum of four flipped 3 x 3 kernels, each shifted by zero or one pixel along either axis.
    """
    assert conv.kernel_size == (3, 3) and conv.stride == conv.padding == conv.dilation == (1, 1) and conv.groups == 1
    along = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.float64, device=conv.weight.device)
    kernels = conv.weight.transpose(0, 1).flatten(2).double() @ torch.kron(along, along).T  # [in, out, 16]
    doubling = nn.ConvTranspose2d(conv.in_channels, conv.out_channels, 4, 2, 1, bias=False, device="meta")
    doubling.weight = _like(conv.weight, kernels.unflatten(2, (4, 4)))
    doubling.bias = conv.bias
    return doubling


def _base(layer: nn.Module) -> nn.Conv2d:
    """Return a convolution itself, or the base layer of a convolution with LoRA."""
    return cast(nn.Conv2d, layer.get_base_layer() if isinstance(layer, clora.LoraLayer) else layer)


def _like(parameter: Tensor, value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(parameter.dtype), requires_grad=False)
