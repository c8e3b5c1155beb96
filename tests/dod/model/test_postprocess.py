"""Post-processing: inputs and outputs of the gate, and the blend that they control."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dod.checkpoint import load_checkpoint, save_checkpoint
from dod.config import PostprocessConfig
from dod.errors import CheckpointError, ConfigError
from dod.model.dod import DOD
from dod.model.postprocess import FLOOR, HOP, LEVELS, SHARE_FLOOR, STRIDE, Gate, Postprocess, frequencies
from tests.dod.small_model import image, normal, snr_db, tiny

SMALL = PostprocessConfig(filters=3, taps=5, window=9, width=8)
PRESET = {"postprocess": {"filters": 3, "taps": 5, "window": 9, "width": 8}}


def crops(batch: int = 2, count: int = 4, side: int = 32, seed: int = 0) -> Tensor:
    return image(batch * count, side, side, seed).unflatten(0, (batch, count))


def gate(config: PostprocessConfig = SMALL) -> Gate:
    torch.manual_seed(0)
    return Gate(6, config)


@torch.no_grad()
def test_an_untrained_gate_predicts_no_share_and_no_gains() -> None:
    share, gains = gate()(crops(), normal(2, 6))
    assert share.shape == (2, 1) and gains.shape == (2, 3)
    assert share.max() < 1e-6 and not gains.any()


@pytest.mark.parametrize("window", [9, 15])
@torch.no_grad()
def test_the_spectrum_is_welchs_periodogram_of_all_crops(window: int) -> None:
    part, given = gate(PostprocessConfig(3, 5, window, 8)), crops(1, 3, 40)
    hann = np.outer(*[1 - np.cos(2 * np.pi * (np.arange(window) + 0.5) / window)] * 2)
    hann /= np.linalg.norm(hann)
    starts = [(y, x) for y in range(0, 41 - window, HOP) for x in range(0, 41 - window, HOP)]
    lumas = given[0].mean(1).numpy()
    windows = [luma[y : y + window, x : x + window] for luma in lumas for y, x in starts]
    power = np.mean([np.abs(np.fft.fft2(each * hann)) ** 2 for each in windows], axis=0)
    grid = frequencies(window).numpy()
    expected = np.log(power[grid[:, 0] % window, grid[:, 1]] + FLOOR)
    assert len(grid) == (window**2 - 1) // 2 - 4
    assert snr_db(expected, part.spectrum(given)[0]) >= 80
    assert snr_db(expected, part.spectrum(given + 3)[0]) >= 60, "brightness has no influence"


@torch.no_grad()
def test_the_histogram_counts_the_darkest_and_the_brightest_channels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 3, 64, 64))
    found = gate().histogram(torch.from_numpy(pixels).float() / 127.5 - 1)
    seen = pixels[..., ::STRIDE, ::STRIDE] / 255
    shares = [(seen.min(2) < level).mean((1, 2, 3)) for level in LEVELS]
    shares += [(seen.max(2) > level).mean((1, 2, 3)) for level in LEVELS]
    assert np.abs(np.exp(found.numpy()) - SHARE_FLOOR - np.stack(shares, 1)).max() < 0.02


@torch.no_grad()
def test_spectrum_histogram_and_condition_decide_the_share_and_the_spectrum_alone_the_gains() -> None:
    part, given, c = gate(), crops(), normal(2, 6)
    for network in (part.passing, part.sharpness):
        nn.init.normal_(network[-1].weight)
        nn.init.zeros_(network[-1].bias)
    share, gains = part(given, c)
    brighter, same = part(given * 0.5 + 0.4, c), part(given, -c)
    assert not torch.allclose(share, brighter[0], atol=1e-3) and not torch.allclose(share, same[0], atol=1e-3)
    assert torch.equal(gains, same[1]) and not torch.allclose(gains, brighter[1], atol=1e-3)
    alone = part(given[1:], c[1:])
    assert torch.allclose(alone[0], share[1:], atol=1e-5), "the share does not depend on the batch"


@torch.no_grad()
def test_the_share_blends_the_decoded_and_the_sharpened_image() -> None:
    post, decoded, degraded = Postprocess(SMALL), image(2, 24, 33, seed=1), image(2, 24, 33)
    gains, share = normal(2, 3), torch.tensor([[0.0], [0.75]])
    kernels = torch.einsum("bf,fij->bij", gains.double(), post.filters.weight[:, 0].double())
    around = F.pad(degraded.double().mean(1, keepdim=True), (2, 2, 2, 2), mode="reflect")
    added = torch.cat([F.conv2d(x[None], k[None, None]) for x, k in zip(around, kernels, strict=True)])
    expected = 0.25 * decoded.double() + 0.75 * (degraded.double() + added)
    found = post(decoded, degraded, share, gains)
    assert torch.equal(found[0], decoded[0]) and snr_db(expected[1], found[1]) >= 100


@torch.no_grad()
def test_the_model_decides_once_per_image_and_never_on_a_named_path() -> None:
    model, plain = DOD.from_preset(tiny(**PRESET)), DOD.from_preset(tiny())
    assert plain.gate is None and plain.postprocess is None and not plain.postprocess_parameters()
    assert set(model.postprocess_parameters()) <= set(model.trained_tensors())
    assert not [name for name in model.detail_parameters() if name.startswith(("gate", "postprocess"))]
    given = image(1, 64, 64)
    assert torch.allclose(model(given), plain(given), atol=1e-5), "an untrained gate changes nothing"
    assert model.gate is not None
    nn.init.constant_(model.gate.passing[-1].bias, 40.0)
    assert torch.allclose(model(given), given, atol=1e-5), "an open gate returns the image"
    assert [model.share(name) for name in ("haze", "rain", "noise", "low-light", "blur")] == [0, 0, 0, 0, 1]
    assert plain.share("blur") == 0


def test_a_checkpoint_states_its_postprocessing(tmp_path) -> None:
    model = DOD.from_preset(tiny(**PRESET))
    save_checkpoint(model, tmp_path)
    load_checkpoint(DOD.from_preset(tiny(**PRESET)), tmp_path)
    with pytest.raises(CheckpointError, match="postprocess"):
        load_checkpoint(DOD.from_preset(tiny()), tmp_path)
    save_checkpoint(DOD.from_preset(tiny()), tmp_path)
    with pytest.raises(CheckpointError, match="dod-train postprocess"):
        load_checkpoint(DOD.from_preset(tiny(**PRESET)), tmp_path)
    load_checkpoint(DOD.from_preset(tiny(**PRESET)), tmp_path, without_postprocess=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filters": 0}, r"postprocess\.filters: .*>= 1.*0"),
        ({"taps": 4}, r"postprocess\.taps: 4 .*odd"),
        ({"width": 1}, r"postprocess\.width: .*>= 2.*1"),
        ({"window": 99}, r"postprocess\.window: 99"),
    ],
)
def test_a_setting_out_of_range_is_named(change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(postprocess={**PRESET["postprocess"], **change})
