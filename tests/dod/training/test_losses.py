"""Loss terms against independent computations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from skimage.metrics import structural_similarity
from torch import Tensor

from dod.errors import CheckpointError, ConfigError
from dod.training import losses
from dod.training.losses import VGG, distribution_matching, multiscale, noised, predicted_x0, reconstruction, structural
from tests.dod.small_model import image, normal

WIDTHS = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256, 17: 512, 19: 512, 21: 512, 24: 512, 26: 512, 28: 512}
"""torchvision's VGG-16: index of each convolution in `features`, and its channels."""


def test_reconstruction_is_the_norm_of_each_image() -> None:
    a, b = image(2, seed=1), image(2, seed=2)
    expected = np.mean([np.sqrt(np.mean((x - y) ** 2)) for x, y in zip(a.numpy(), b.numpy(), strict=True)])
    assert reconstruction(a, b).item() == pytest.approx(expected, rel=1e-5)
    same = a.clone().requires_grad_(True)
    reconstruction(same, a).backward()
    assert same.grad is not None and same.grad.isfinite().all(), "the gradient at zero error is not finite"


def test_a_relative_reconstruction_counts_every_image_alike() -> None:
    clean = image(2, seed=1)
    errors = torch.tensor([0.3, 0.01])[:, None, None, None] * normal(2, 3, *clean.shape[2:], seed=2)
    restored = clean + errors
    psnr = [10 * np.log10(4 / np.mean((x - y) ** 2)) for x, y in zip(restored.numpy(), clean.numpy(), strict=True)]
    found = reconstruction(restored.requires_grad_(True), clean, relative=True)
    assert found.item() == pytest.approx(np.log(2) - np.log(10) / 20 * np.mean(psnr), rel=1e-4)
    found.backward()
    assert restored.grad is not None
    moved = (restored.grad * errors).sum(dim=(1, 2, 3))  # gain of reducing an error by a fraction
    assert moved[0].item() == pytest.approx(moved[1].item(), rel=1e-3)


def test_latents_are_compared_at_three_scales() -> None:
    target, flat = normal(2, 4, 8, 8, seed=1), torch.full((2, 4, 8, 8), 0.5)
    assert multiscale(target + flat, target).item() == pytest.approx(3 * 0.25, rel=1e-5)
    signs = torch.tensor([1.0, -1.0]).repeat(4).expand(2, 4, 8, 8)
    assert multiscale(target + 0.5 * signs, target).item() == pytest.approx(0.25, rel=1e-5)
    errors = torch.tensor([0.3, 0.01])[:, None, None, None] * normal(2, 4, 8, 8, seed=2)
    restored = (target + errors).requires_grad_(True)
    multiscale(restored, target, relative=True).backward()
    assert restored.grad is not None
    moved = (restored.grad * errors).sum(dim=(1, 2, 3))
    assert moved[0].item() == pytest.approx(moved[1].item(), rel=1e-3)


def test_structural_is_scikit_images_ssim() -> None:
    clean = image(1, 48, 40, seed=1)
    noisy = (clean + 0.3 * normal(1, 3, 48, 40, seed=2)).clamp(-1, 1)
    x, y = (((t[0].permute(1, 2, 0).double().numpy()) + 1) / 2 for t in (clean, noisy))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "truncate": 3.5}
    _, whole = structural_similarity(x, y, channel_axis=2, data_range=1.0, full=True, **options)
    inner = whole[5:-5, 5:-5].mean()  # windows that lie inside the image
    assert 1 - structural(noisy, clean).item() == pytest.approx(inner, abs=1e-5)
    assert structural(clean, clean).item() == pytest.approx(0, abs=1e-6)
    flat = (0.9 + clean / 1000, 0.9 + noisy / 1000)  # variances that bfloat16 rounds to 0
    with torch.autocast("cpu", torch.bfloat16):
        reduced = structural(*flat)
    assert reduced.item() == pytest.approx(structural(*flat).item(), abs=1e-6)


def vgg_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state, channels = {}, 3
    for place, width in WIDTHS.items():
        deviation = (2 / (channels * 9)) ** 0.5
        state[f"features.{place}.weight"] = deviation * torch.randn(width, channels, 3, 3, generator=generator)
        state[f"features.{place}.bias"] = 0.1 * torch.randn(width, generator=generator)
        channels = width
    return {**state, "classifier.0.weight": torch.zeros(2, 2)}


def expected_distance(state: dict[str, Tensor], a: Tensor, b: Tensor) -> float:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = torch.cat([((t + 1) / 2 - mean[:, None, None]) / std[:, None, None] for t in (a, b)])
    total = 0.0
    for place in range(30):
        if f"features.{place}.weight" in state:
            x = F.conv2d(x, state[f"features.{place}.weight"], state[f"features.{place}.bias"], padding=1)
        elif place in (4, 9, 16, 23):
            x = F.max_pool2d(x, 2)
        else:
            x = x.relu()
            if place in (3, 8, 15, 22, 29):
                unit = x / x.norm(dim=1, keepdim=True)
                total += ((unit[0] - unit[1]) ** 2).sum(0).mean().item()
    return total


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_vgg_reads_the_layout_of_torchvision(tmp_path: Path, suffix: str) -> None:
    state, path = vgg_state(), tmp_path / f"vgg16{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    vgg = VGG(path)
    a, b = image(seed=1), image(seed=2)
    assert vgg(a, b).item() == pytest.approx(expected_distance(state, a, b), rel=1e-4)
    assert vgg(a, a).item() == 0
    assert not any(parameter.requires_grad for parameter in vgg.parameters())


def test_vgg_of_another_layout(tmp_path: Path) -> None:
    state = vgg_state()
    del state["features.0.bias"]
    save_file(state, tmp_path / "vgg.safetensors")
    with pytest.raises(CheckpointError, match="1 of 26 .* features.0.bias"):
        VGG(tmp_path / "vgg.safetensors")
    with pytest.raises(CheckpointError, match="none.pth"):
        VGG(tmp_path / "none.pth")


def test_missing_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchvision.models", None)
    with pytest.raises(ConfigError, match="torchvision"):
        VGG("torchvision")


def test_a_noise_prediction_gives_x0_back() -> None:
    x0, eps, abar = (
        normal(2, 4, 8, 8, seed=1),
        normal(2, 4, 8, 8, seed=2),
        torch.tensor([0.9, 0.0047])[:, None, None, None],
    )
    assert torch.allclose(predicted_x0(noised(x0, eps, abar), eps, abar), x0, atol=1e-4)


def test_distribution_matching_has_the_gradient_of_dmd() -> None:
    latent = normal(2, 4, 8, 8, seed=1).requires_grad_(True)
    real, fake = normal(2, 4, 8, 8, seed=2), normal(2, 4, 8, 8, seed=3)
    distribution_matching(latent, real, fake).backward()
    assert latent.grad is not None
    for i in range(2):
        scale = (latent.detach()[i] - real[i]).abs().mean()
        expected = (fake[i] - real[i]) / scale * 2 / latent.numel()
        assert torch.allclose(latent.grad[i], expected, rtol=1e-4, atol=1e-8)
    broken = fake.clone()
    broken[0, 0, 0, 0] = float("nan")
    latent.grad = None
    losses.distribution_matching(latent, real, broken).backward()
    assert latent.grad is not None and latent.grad.isfinite().all()
