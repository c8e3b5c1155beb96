"""Training of the paper's two stages.

    dod-train stage1 --photographs photographs/train --checkpoint mini
    dod-train stage2 --photographs photographs/train --checkpoint mini

Stage 1 trains the adaptation (PLA: the encoder's LoRA, CLoRA, prompts and M) through the frozen decoder. Stage 2 trains
the detail modules. With `--decoder trained` it also trains the decoder of the base, which is rewritten, so the base
must be the user's own; `--decoder new` starts that decoder from new weights.

Each stage reads and writes the checkpoint that the preset names; for a shipped preset, or with `--out`, that of a copy.
Stage 2 continues from the existing checkpoint. Stage 1 does so with `--continue`, and needs `--overwrite` to replace an
existing one. Run `dod-train calibrate` afterwards.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..checkpoint import METADATA, load_checkpoint, save_checkpoint
from ..config import Preset
from ..errors import CheckpointError, ConfigError, run_command
from ..model.dod import DOD
from ..tensors import fingerprint
from . import calibrate
from .arguments import command_name, samples_from
from .init import new_autoencoder
from .loop import train
from .losses import VGG
from .output import open_output, part_path, state_folder, training_preset
from .parts import restored_on_error
from .processes import is_main_process, say
from .rebase import rebased, recover_base
from .records import cost, is_repeated, log_excerpt, training_record
from .schedule_arguments import schedule_from
from .stage_arguments import STAGE_1_OPTIONS, STAGE_2_OPTIONS, parser
from .stage_objectives import AdaptationObjective, DetailObjective
from .state import Log, Schedule

__all__ = ["main", "parser", "stage_1", "stage_2"]

NAMES = {"stage1": 1, "stage2": 2, "1": 1, "2": 2}
"""Names of the stages on the command line; the digits are former spellings."""
PREVIEWS = 4
"""Number of images that TensorBoard shows."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `dod-train stage1` or `dod-train stage2`, or `calibrate` for `python -m dod.training.stages calibrate`.

    Args:
        argv: name of the stage and arguments, by default those of the process.

    Returns:
        The exit code.

    Raises:
        CheckpointError: there is no checkpoint to continue from, or it belongs to another base.
        ConfigError: options do not fit the preset, or existing weights would be lost.
        DataError: images are missing or unusable.
        TrainingError: see `dod.training.loop.train`.
    """
    name, words = command_name(argv, "dod-train", (*NAMES, "calibrate"))
    if name == "calibrate":
        return calibrate.main(words)
    stage = NAMES[name]
    arguments = parser(stage).parse_args(words)
    preset, schedule = training_preset(arguments), schedule_from(arguments)
    decoder = "frozen" if stage == 1 else arguments.decoder
    continues, trained = stage == 2 or arguments.continue_training, decoder != "frozen"
    _check(arguments, preset, schedule, decoder)
    if continues and not (part_path(preset, "checkpoint") / METADATA).is_file():
        raise CheckpointError(f"no checkpoint at {part_path(preset, 'checkpoint')}: run `dod-train stage1` first")
    writes = {"checkpoint": continues, **({"vae": decoder == "trained"} if trained else {})}
    preset = open_output(arguments, preset, writes)
    folder, base = part_path(preset, "checkpoint"), part_path(preset, "vae")
    if trained:
        recover_base(base, folder)
    torch.manual_seed(schedule.seed)
    model = DOD.from_preset(preset)
    metadata = load_checkpoint(model, folder, any_base=stage == 1) if continues else {}
    other_base = bool(metadata) and metadata["base_sha256"] != model.base_sha256
    if other_base:
        model.prototypes, model.statistics = {}, None  # they belong to the condition c of the other base
        say("checkpoint was trained on a different base; prototypes were discarded")
    training = metadata.get("training", [])
    dataset = samples_from(arguments, schedule, preset.conditions, arguments.clean_fraction)
    options = {key: getattr(arguments, key) for key in (STAGE_1_OPTIONS if stage == 1 else STAGE_2_OPTIONS)}
    recorded = {**options, "continue": continues} if stage == 1 else options
    run = {"stage": stage, **training_record(schedule, [], **recorded), "samples": dataset.identity}
    if not other_base and is_repeated(folder, training, run):
        return 0
    with restored_on_error(base) if trained and is_main_process() else nullcontext():
        log = (stage_1 if stage == 1 else stage_2)(model, dataset, schedule, state_folder(arguments), **options)
        run["log"] = log_excerpt(log)
        if trained:
            model = rebased(model, run)
        say(f"stage {stage}: loss {log[-1]['loss']:.5f} after {schedule.steps} steps, {cost(log)}")
        if is_main_process():
            save_checkpoint(model, folder, torch.float16, training=[*training, run])
    if not model.prototypes:
        say(f"{folder} has no prototypes, which named conditions need: run `dod-train calibrate`")
    return 0


def stage_1(
    model: DOD,
    dataset: Dataset,
    schedule: Schedule,
    state: Path,
    rec_weight: float = 1.0,
    perceptual_weight: float = 2.0,
    dmd_weight: float = 1.0,
    latent_weight: float = 0.0,
    vgg: str = "",
    relative: bool = False,
    gradient_checkpointing: bool = False,
    tile_size: Sequence[int] = (),
) -> Log:
    """Train the adaptation of a model, in place. Eq. (11); see `AdaptationObjective`.

    Args:
        model: the model.
        dataset: samples (degraded, clean, ...).
        schedule: schedule of the run.
        state: folder of the run's state.
        rec_weight: weight of the reconstruction term (8).
        perceptual_weight: weight of the perceptual term (9).
        dmd_weight: weight of the distribution matching term (10).
        latent_weight: weight of the latent term.
        vgg: weights of `losses.VGG`; without them the perceptual term is off.
        relative: use the logarithm of each image's error.
        gradient_checkpointing: recompute the UNet's activations in the backward pass to save memory.
        tile_size: sides in px of the windows that are restored; empty for whole images.

    Returns:
        The log.

    Raises:
        ConfigError: all terms are off.
        TrainingError: see `dod.training.loop.train`.
    """
    if perceptual_weight and not vgg:
        say("no --vgg: the perceptual term (9) is off")
    if not (rec_weight or (perceptual_weight and vgg) or dmd_weight or latent_weight):
        raise ConfigError("stage 1 has no loss: give one of its terms a weight (the perceptual term also needs --vgg)")
    if gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    features = VGG(vgg) if perceptual_weight and vgg else None
    objective = AdaptationObjective(
        model, rec_weight, perceptual_weight, dmd_weight, latent_weight, features, tile_size, relative
    )
    objective.samples = _previews(dataset)
    weights = {"rec_weight": rec_weight, "perceptual_weight": perceptual_weight, "dmd_weight": dmd_weight}
    options = {**weights, "latent_weight": latent_weight, "vgg": vgg, "relative": relative, "tile_size": tile_size}
    return train("stage-1", objective, dataset, schedule, state, _dependencies(model, **options))


def stage_2(
    model: DOD,
    dataset: Dataset,
    schedule: Schedule,
    state: Path,
    rec_weight: float = 1.0,
    ssim_weight: float = 0.2,
    w_lr_multiplier: float = 1.0,
    w_start: float = 0.0,
    decoder: str = "frozen",
    plain_weight: float = 0.25,
    decoder_lr_multiplier: float = 1.0,
    named: float = 0.0,
    relative: bool = False,
    tile_size: Sequence[int] = (),
) -> Log:
    """Train the detail modules of a model, in place. Eq. (13); see `DetailObjective`.

    The default weights of the losses are the paper's. `dod-train stage2` has other defaults for w:
    `stage_arguments.W_LR_MULTIPLIER` and `stage_arguments.W_START`.

    Args:
        model: the model.
        dataset: samples (degraded, clean, index).
        schedule: schedule of the run.
        state: folder of the run's state.
        rec_weight: weight of the reconstruction term (8).
        ssim_weight: weight of the SSIM term (12).
        w_lr_multiplier: learning rate of the modules' weight w as a multiple of the schedule's.
        w_start: minimum absolute value of w before the first step; a smaller w is set to it.
        decoder: "frozen", "trained" with the modules, or "new" (trained from new weights).
        plain_weight: weight of the reconstruction without modules, if the decoder is trained.
        decoder_lr_multiplier: learning rate of the decoder as a multiple of the schedule's.
        named: fraction of degraded images that are restored on their named condition path.
        relative: use the logarithm of each image's error.
        tile_size: sides in px of the windows that are restored; empty for whole images.

    Returns:
        The log.

    Raises:
        ConfigError: there is nothing to train.
        TrainingError: see `dod.training.loop.train`.
    """
    if decoder == "new":
        new = new_autoencoder(model.preset.base.vae).state_dict()
        for name, parameter in model.decoder.base_parameters().items():
            parameter.data.copy_(new[name])
    trained = decoder != "frozen"
    if not trained and not model.detail_parameters():
        raise ConfigError(f"preset {model.preset.name} has no detail modules: stage 2 has nothing to train")
    options: dict[str, Any] = {
        "w_lr_multiplier": w_lr_multiplier,
        "w_start": w_start,
        "decoder_lr_multiplier": decoder_lr_multiplier,
        "relative": relative,
        "tile_size": tile_size,
        "named": named,
    }
    objective = DetailObjective(model, rec_weight, ssim_weight, decoder=trained, plain=plain_weight, **options)
    objective.samples = _previews(dataset)
    options |= {"rec_weight": rec_weight, "ssim_weight": ssim_weight, "plain_weight": plain_weight, "decoder": decoder}
    adaptation = fingerprint(model.adaptation_parameters())
    return train("stage-2", objective, dataset, schedule, state, _dependencies(model, adaptation=adaptation, **options))


def _check(arguments: Namespace, preset: Preset, schedule: Schedule, decoder: str) -> None:
    """Raise ConfigError for options that do not fit the preset, before anything is loaded."""
    if preset.checkpoint is None:
        raise ConfigError(f"preset {preset.name} names no checkpoint: set `checkpoint` to the folder to write")
    for name, side in (("crop", schedule.crop), *(("tile-size", side) for side in arguments.tile_size)):
        if side % preset.size_multiple or not 0 < side <= schedule.crop:
            raise ConfigError(
                f"--{name} {side}: it must be a multiple of {preset.size_multiple}, and a tile at most --crop"
            )
    base = preset.folder / preset.base.source / "vae"
    if decoder != "frozen" and not (base / "config.json").is_file():
        raise ConfigError(
            f"--decoder {decoder} rewrites the base's decoder, but base.source = {preset.base.source} is not a folder "
            "with one: copy the base to a folder of your own, and name that"
        )


def _dependencies(model: DOD, **options: object) -> dict[str, object]:
    """Return what determines a run beside schedule, samples and initial weights: frozen weights, preset, options."""
    preset = {
        f"{part}.{key}": value
        for part in ("mfm", "lora", "step", "detail")
        for key, value in asdict(getattr(model.preset, part)).items()
    }
    return {"frozen weights": model.base_sha256, **preset, **options}


def _previews(dataset: Dataset) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the first (degraded, clean) pairs of a data set."""
    return {str(i): dataset[i][:2] for i in range(PREVIEWS)}


if __name__ == "__main__":
    raise SystemExit(run_command(main))
