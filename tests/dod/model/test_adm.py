"""ADM encoder: published layout, arithmetic, and loading of state dicts."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from dod.errors import CheckpointError
from dod.model import base
from dod.model.adm import ADMEncoder
from tests.dod.small_model import image, normal, snr_db

SMALL = partial(
    ADMEncoder, model_channels=32, multipliers=(1, 2), res_blocks=1, attention_factors=(2,), head_channels=16
)

# The blocks of `input_blocks` in 256x256_diffusion_uncond.pt after the first convolution, in order: input and output
# channels of the residual block, and True if attention follows it. "down" halves the size.
PUBLISHED = [
    (256, 256, False), (256, 256, False), "down",
    (256, 256, False), (256, 256, False), "down",
    (256, 512, False), (512, 512, False), "down",
    (512, 512, True), (512, 512, True), "down",
    (512, 1024, True), (1024, 1024, True), "down",
    (1024, 1024, True), (1024, 1024, True),
]  # fmt: skip


def linear(name: str, outputs: int, *inputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, *inputs)
    yield f"{name}.bias", (outputs,)


def residual(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from linear(f"{name}.in_layers.0", inputs)
    yield from linear(f"{name}.in_layers.2", outputs, inputs, 3, 3)
    yield from linear(f"{name}.emb_layers.1", 2 * outputs, 1024)
    yield from linear(f"{name}.out_layers.0", outputs)
    yield from linear(f"{name}.out_layers.3", outputs, outputs, 3, 3)
    if inputs != outputs:
        yield from linear(f"{name}.skip_connection", outputs, inputs, 1, 1)


def attention(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from linear(f"{name}.norm", channels)
    yield from linear(f"{name}.qkv", 3 * channels, channels, 1)
    yield from linear(f"{name}.proj_out", channels, channels, 1)


def published_layout() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from linear("time_embed.0", 1024, 256)
    yield from linear("time_embed.2", 1024, 1024)
    yield from linear("input_blocks.0.0", 256, 3, 3, 3)
    channels = 256
    for i, row in enumerate(PUBLISHED, start=1):
        if isinstance(row, str):
            yield from residual(f"input_blocks.{i}.0", channels, channels)
            continue
        inputs, channels, attends = row
        yield from residual(f"input_blocks.{i}.0", inputs, channels)
        if attends:
            yield from attention(f"input_blocks.{i}.1", channels)
    yield from residual("middle_block.0", 1024, 1024)
    yield from attention("middle_block.1", 1024)
    yield from residual("middle_block.2", 1024, 1024)


def test_keys_and_shapes_are_the_published_checkpoints() -> None:
    with torch.device("meta"):
        encoder = ADMEncoder()
    assert {name: tuple(t.shape) for name, t in encoder.state_dict().items()} == dict(published_layout())
    assert encoder.channels == 1024
    with torch.device("meta"):
        assert encoder(torch.empty(2, 3, 256, 256)).shape == (2, 1024, 8, 8)


def small_encoder() -> ADMEncoder:
    encoder = SMALL().eval()
    with torch.no_grad():
        for i, parameter in enumerate(encoder.parameters()):
            parameter.add_(normal(*parameter.shape, seed=i) * 0.1)
    return encoder


def reference(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Compute `SMALL` in float64 from its weights, as Dhariwal and Nichol describe it."""

    def norm(x: Tensor, name: str) -> Tensor:
        grouped = x.reshape(x.shape[0], 32, -1)
        grouped = (grouped - grouped.mean(2, keepdim=True)) / (grouped.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        shape = (1, -1, *[1] * (x.ndim - 2))
        return grouped.reshape(x.shape) * w[f"{name}.weight"].reshape(shape) + w[f"{name}.bias"].reshape(shape)

    def silu(x: Tensor) -> Tensor:
        return x / (1 + (-x).exp())

    def convolution(x: Tensor, name: str) -> Tensor:
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=w[f"{name}.weight"].shape[2] // 2)

    def halved(x: Tensor) -> Tensor:
        return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4

    def residual(x: Tensor, name: str, down: bool = False) -> Tensor:
        h = silu(norm(x, f"{name}.in_layers.0"))
        h, x = (halved(h), halved(x)) if down else (h, x)
        h = convolution(h, f"{name}.in_layers.2")
        affine = w[f"{name}.emb_layers.1.weight"] @ silu(embedding) + w[f"{name}.emb_layers.1.bias"]
        scale, shift = affine[: h.shape[1], None, None], affine[h.shape[1] :, None, None]
        h = convolution(silu(norm(h, f"{name}.out_layers.0") * (1 + scale) + shift), f"{name}.out_layers.3")
        return h + (convolution(x, f"{name}.skip_connection") if f"{name}.skip_connection.weight" in w else x)

    def attention(x: Tensor, name: str) -> Tensor:
        flat = norm(x, f"{name}.norm").reshape(x.shape[0], x.shape[1], -1)
        qkv = torch.einsum("oc,bcn->bon", w[f"{name}.qkv.weight"][:, :, 0], flat) + w[f"{name}.qkv.bias"][:, None]
        heads = []
        for head in qkv.split(3 * 16, dim=1):  # heads first, then q, k and v
            q, k, v = head.split(16, dim=1)
            weight = torch.einsum("bcn,bcm->bnm", q, k) / math.sqrt(16)
            heads.append(torch.einsum("bnm,bcm->bcn", weight.softmax(-1), v))
        out = torch.einsum("oc,bcn->bon", w[f"{name}.proj_out.weight"][:, :, 0], torch.cat(heads, 1))
        return x + (out + w[f"{name}.proj_out.bias"][:, None]).reshape(x.shape)

    at_zero = torch.cat([torch.ones(16), torch.zeros(16)]).double()  # the cosines, then the sines, of t = 0
    embedding = w["time_embed.0.weight"] @ at_zero + w["time_embed.0.bias"]
    embedding = w["time_embed.2.weight"] @ silu(embedding) + w["time_embed.2.bias"]
    x = convolution(x, "input_blocks.0.0")
    x = residual(x, "input_blocks.1.0")
    x = residual(x, "input_blocks.2.0", down=True)
    x = attention(residual(x, "input_blocks.3.0"), "input_blocks.3.1")
    x = attention(residual(x, "middle_block.0"), "middle_block.1")
    return residual(x, "middle_block.2")


def test_the_encoder_computes_what_the_paper_describes() -> None:
    encoder = small_encoder()
    assert any("skip_connection" in name for name in encoder.state_dict()) and encoder.middle_block[1].heads == 4
    x = image(2, 16, 24)
    expected = reference({name: t.detach().double() for name, t in encoder.state_dict().items()}, x.double())
    with torch.no_grad():
        found = encoder(x)
    assert found.shape == (2, 64, 8, 12)
    assert snr_db(expected, found) >= 90


@pytest.fixture
def small_layout(monkeypatch: pytest.MonkeyPatch) -> ADMEncoder:
    """Make `base.load_adm` read a small layout with the same names."""
    monkeypatch.setattr(base, "ADMEncoder", SMALL)
    return small_encoder()


@pytest.mark.parametrize("form", ["pt", "old pt", "safetensors"])
def test_checkpoint_loads_in_every_form(small_layout: ADMEncoder, tmp_path: Path, form: str) -> None:
    state = {**small_layout.state_dict(), "out.0.weight": torch.ones(32), "output_blocks.0.0.x": torch.ones(1)}
    path = tmp_path / ("adm.safetensors" if form == "safetensors" else "adm.pt")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "pt")
    loaded = base.load_adm(path)
    read = loaded.state_dict()
    assert list(read) == list(small_layout.state_dict())
    assert all(torch.equal(read[name], tensor) for name, tensor in small_layout.state_dict().items())
    x = image(1, 16, 16)
    with (
        torch.no_grad()
    ):  # not bit for bit: kernels depend on the alignment of the weights, which differs in a mapped file
        assert snr_db(small_layout(x), loaded(x)) >= 100


def test_fp16_weights_are_read_as_float32(small_layout: ADMEncoder, tmp_path: Path) -> None:
    save_file({name: t.half() for name, t in small_layout.state_dict().items()}, tmp_path / "adm.safetensors")
    assert {t.dtype for t in base.load_adm(tmp_path / "adm.safetensors").state_dict().values()} == {torch.float32}


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("plain_pickle", [False, True])
def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path, plain_pickle: bool) -> None:
    path, trace = tmp_path / "adm.pt", tmp_path / "the code ran"
    content = {"input_blocks.0.0.weight": torch.ones(1), "more": Attack(trace)}
    if plain_pickle:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"adm.pt: not a plain state dict"):
        base.load_adm(path)
    assert not trace.exists()
    _ = pickle.loads(path.read_bytes()) if plain_pickle else torch.load(path, weights_only=False)
    assert trace.exists(), "the pickle must run code when it is loaded, or this test shows nothing"


def test_missing_keys_are_named(small_layout: ADMEncoder, tmp_path: Path) -> None:
    state = small_layout.state_dict()
    del state["middle_block.1.qkv.weight"]
    state["time_embed.0.bias"] = torch.ones(3)
    torch.save(state, tmp_path / "adm.pt")
    with pytest.raises(CheckpointError, match=r"2 keys .*first time_embed.0.bias, middle_block.1.qkv.weight"):
        base.load_adm(tmp_path / "adm.pt")


@pytest.mark.parametrize("content", [[1, 2], np.ones(3), torch.ones(3), {"time_embed.0.weight": "text"}])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "adm.pt")
    with pytest.raises(CheckpointError, match=r"adm.pt: not "):
        base.load_adm(tmp_path / "adm.pt")


@pytest.mark.parametrize("name", ["adm.pt", "adm.safetensors"])
def test_damaged_and_missing_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"no .*{name}"):
        base.load_adm(tmp_path / name)
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match=rf"{name}: not a"):
        base.load_adm(tmp_path / name)
