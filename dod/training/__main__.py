"""The commands of `dod-train`: training data, priors, the two stages, calibration, and what follows them."""

from __future__ import annotations

from collections.abc import Sequence

from dod_runtime.console import Command, run_group

from ..errors import DODError

__all__ = ["COMMANDS", "run"]

COMMANDS = (
    Command("photographs", "dod.data.photographs", "download the photographs that the shipped model is trained on"),
    Command("samples", "dod.data.samples", "write the sample images of docs/samples"),
    Command("vae", "dod.training.pretrain", "train the autoencoder of a preset", ("vae",)),
    Command("unet", "dod.training.pretrain", "train the latent UNet of a preset", ("unet",)),
    Command("ddpm", "dod.training.pretrain", "train the pixel DDPM of a preset", ("ddpm",)),
    Command("stage1", "dod.training.stages", "train stage 1: the adaptation to degraded images", ("stage1",)),
    Command("stage2", "dod.training.stages", "train stage 2: the detail modules", ("stage2",)),
    Command("calibrate", "dod.training.calibrate", "compute the prototypes of the conditions"),
    Command("postprocess", "dod.extras.postprocess", "fit the post-processing: gate and sharpening filters"),
    Command("prune", "dod.extras.prune", "remove dense blocks from detail modules"),
    Command("average", "dod.extras.average", "average the weights of two presets"),
    Command("random-weights", "dod.random_weights.__main__", "write a full-size checkpoint with random weights"),
)
"""Subcommands of `dod-train`."""


def run(argv: Sequence[str] | None = None) -> int:
    """Run `dod-train`.

    Args:
        argv: arguments, by default those of the process.

    Returns:
        The exit code.
    """
    return run_group("dod-train", "Train a DOD model.", COMMANDS, argv, also=(DODError,))


if __name__ == "__main__":
    raise SystemExit(run())
