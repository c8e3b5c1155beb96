"""Loss terms of the paper's two stages, equations (8) to (13). Images are [B, 3, H, W] in -1 to 1."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from ..tensors import read_state

__all__ = ["VGG", "distribution_matching", "multiscale", "noised", "predicted_x0", "reconstruction", "structural"]

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
"""Side and standard deviation of SSIM's windows in px."""
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
"""Channels of the convolutions of VGG-16 up to relu5_3; 0 is a pooling by 2."""
VGG_FEATURES = (1, 4, 8, 12, 16)
"""Indices in `VGG16` of the layers that are compared: relu1_2, 2_2, 3_3, 4_3, 5_3 (Zhang et al. 2018)."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Normalization of VGG-16's input."""


def reconstruction(output: Tensor, target: Tensor, relative: bool = False) -> Tensor:
    """Eq. (8): L2 norm of each image's error, as a root mean square so that it does not grow with the crop.

    The squared norm would leave the gradient to low light and haze, whose errors are the largest.

    Args:
        output: [B, 3, H, W].
        target: [B, 3, H, W].
        relative: use the natural logarithm, which is PSNR up to a factor: degradations that are hard to restore then
            count no more than others.

    Returns:
        The mean over the batch, a scalar.
    """
    error = (output - target).square().mean(dim=(1, 2, 3)).add(1e-8).sqrt()
    return (error.log() if relative else error).mean()


def multiscale(output: Tensor, target: Tensor, relative: bool = False) -> Tensor:
    """Mean squared error of latents at three scales: single values, 4 x 4 means and whole means.

    The coarse scales weigh color casts, which are the most visible errors.

    Args:
        output: [B, 4, h, w].
        target: [B, 4, h, w].
        relative: use half the logarithm of each latent's sum, as in `reconstruction`.

    Returns:
        The mean over the batch, a scalar.
    """
    error = output - target
    scales = (error, *(F.avg_pool2d(error, size) for size in (4, error.shape[-2:])))
    each = torch.stack([scale.square().mean(dim=(1, 2, 3)) for scale in scales]).sum(0)
    return (each.add(1e-8).log() / 2 if relative else each).mean()


def structural(output: Tensor, target: Tensor) -> Tensor:
    """Eq. (12): 1 - SSIM (Wang et al. 2004) with 11 x 11 Gaussian windows of deviation 1.5.

    Args:
        output: [B, 3, H, W], H and W at least 11.
        target: [B, 3, H, W].

    Returns:
        The mean over windows and channels, a scalar.
    """
    channels = output.shape[1]
    grid = torch.arange(SSIM_WINDOW, dtype=torch.float32, device=output.device) - SSIM_WINDOW // 2
    gaussian = torch.exp(-(grid**2) / (2 * SSIM_SIGMA**2))
    gaussian = gaussian / gaussian.sum()

    def local(x: Tensor) -> Tensor:
        # Under autocast a variance would be the difference of two 8-bit means: noise of either sign.
        with torch.autocast(x.device.type, enabled=False):
            x = F.conv2d(x, gaussian.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
            return F.conv2d(x, gaussian.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)

    a, b = (output.float() + 1) / 2, (target.float() + 1) / 2
    mean_a, mean_b = local(a), local(b)
    variance_a, variance_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    covariance = local(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return 1 - (luminance * (2 * covariance + c2) / (variance_a + variance_b + c2)).mean()


class VGG(nn.Module):
    """Eq. (9): distance of VGG-16 features of unit length over the channels (Zhang et al. 2018, unweighted).

    Args:
        weights: torchvision's VGG-16 with its own key names, `.safetensors` or `.pth` (read with weights_only=True), or
            "torchvision" to take them from that library.

    Raises:
        CheckpointError: the file has another layout.
        ConfigError: torchvision is requested and not installed.
    """

    def __init__(self, weights: str | Path) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        self.compared: list[int] = []
        for i, width in enumerate(VGG16):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2)]
            channels = width or channels
            if i in VGG_FEATURES:
                self.compared.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))
        state = _torchvision_state() if str(weights) == "torchvision" else read_state(Path(weights))
        own = {f"features.{name}": parameter for name, parameter in self.features.named_parameters()}
        wrong = [name for name, parameter in own.items() if name not in state or state[name].shape != parameter.shape]
        if wrong:
            raise CheckpointError(
                f"{weights} is not torchvision's VGG-16: {len(wrong)} of {len(own)} weights are missing or have "
                f"another shape, first {wrong[0]}"
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])
        self.requires_grad_(False).eval()

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the distance of two batches of images.

        Args:
            output: [B, 3, H, W].
            target: [B, 3, H, W].

        Returns:
            A scalar.
        """
        a, b = self._normalize(output), self._normalize(target)
        total = output.new_zeros(())
        for i, layer in enumerate(self.features):
            a, b = layer(a), layer(b)
            if i in self.compared:
                total = total + (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean()
        return total

    def _normalize(self, image: Tensor) -> Tensor:
        return ((image.float() + 1) / 2 - self.mean) / self.std  # pyright: ignore[reportOperatorIssue]


def noised(x0: Tensor, eps: Tensor, abar: Tensor) -> Tensor:
    """Add noise: sqrt(abar_t) x0 + sqrt(1 - abar_t) eps (Ho et al. 2020, equation (4)).

    Args:
        x0: [B, C, H, W].
        eps: standard normal noise [B, C, H, W].
        abar: [B, 1, 1, 1].

    Returns:
        [B, C, H, W].
    """
    return abar.sqrt() * x0 + (1 - abar).sqrt() * eps


def predicted_x0(noisy: Tensor, eps: Tensor, abar: Tensor) -> Tensor:
    """Return the x0 that a noise prediction implies: the inverse of `noised`.

    Args:
        noisy: [B, C, H, W].
        eps: predicted noise [B, C, H, W].
        abar: [B, 1, 1, 1].

    Returns:
        float32 [B, C, H, W].
    """
    return (noisy.float() - (1 - abar).sqrt() * eps.float()) / abar.sqrt()


def distribution_matching(latent: Tensor, real_x0: Tensor, fake_x0: Tensor) -> Tensor:
    """Eq. (10) as a loss whose gradient is that of DMD (Yin et al. 2024): (fake - real) / mean |latent - real|.

    Values that are not finite contribute nothing.

    Args:
        latent: float32 [B, 4, h, w].
        real_x0: prediction of the real denoiser at the noised latent, without gradient.
        fake_x0: prediction of the fake denoiser at the noised latent, without gradient.

    Returns:
        A scalar.
    """
    scale = (latent - real_x0).abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
    gradient = torch.nan_to_num((fake_x0 - real_x0) / scale, nan=0.0, posinf=0.0, neginf=0.0)
    return F.mse_loss(latent, (latent - gradient).detach())


def _torchvision_state() -> dict[str, Tensor]:
    try:
        from torchvision.models import VGG16_Weights, vgg16  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(f"torchvision cannot be imported ({error}): give a file of VGG-16 weights instead") from error
    return vgg16(weights=VGG16_Weights.IMAGENET1K_V1).state_dict()
