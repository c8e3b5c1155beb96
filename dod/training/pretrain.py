"""Training of the priors that a preset without published weights needs: autoencoder, latent UNet, pixel DDPM.

    dod-train vae  --photographs photographs/train --checkpoint mini
    dod-train unet --photographs photographs/train --checkpoint mini
    dod-train ddpm --photographs photographs/train --checkpoint mini

Each command writes its part to the folder that the preset names, in fp16 and diffusers' layout, with the records of its
runs. `--continue` starts from the existing part. Without it training starts from new weights, and needs `--overwrite`
to replace an existing part. A shipped preset is trained in a copy, `build/presets/NAME`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel

from dod_runtime.console import Parser

from ..config import Preset
from ..errors import ConfigError, run_command
from ..model.base import PROMPT_FILE, new_ddpm, random_prompt
from ..tensors import fingerprint, write_safetensors
from .arguments import Samples, command_name, samples_from, training_parser
from .init import new_autoencoder, new_latent_unet
from .loop import train
from .objectives import AutoencoderObjective, LatentNoiseObjective, PixelNoiseObjective, posterior_of
from .output import check_output, open_output, state_folder, training_preset
from .parts import publish, read_part, read_record
from .processes import say
from .records import cost, is_repeated, log_excerpt, training_record
from .schedule_arguments import schedule_from
from .state import Log, Schedule

__all__ = ["main", "parser", "pretrain_ddpm", "pretrain_unet", "pretrain_vae"]


class Prior(NamedTuple):
    """A prior that can be trained: description, default schedule, and the divisor of its crops by preset."""

    description: str
    schedule: Schedule
    multiple: Callable[[Preset], int]


PRIORS = {
    "vae": Prior(
        "Train the autoencoder of a preset. Photographs stay clean: --setting and --oversample do not apply to them.",
        Schedule(steps=2000, batch_size=8, crop=96, learning_rate=1e-3),
        lambda preset: preset.vae_factor,
    ),
    "unet": Prior(
        "Train the latent UNet of a preset, in the latents of its autoencoder. Photographs stay clean: --setting and "
        "--oversample do not apply to them.",
        Schedule(steps=1200, batch_size=12, crop=128, learning_rate=5e-4),
        lambda preset: preset.size_multiple,
    ),
    "ddpm": Prior(
        "Train the pixel DDPM of a preset, whose encoder gives the condition c. --setting and --oversample apply to "
        "the images that --degraded-fraction degrades.",
        Schedule(steps=800, batch_size=16, crop=64, learning_rate=5e-4),
        lambda preset: 2 ** (len(preset.ddpm.block_out_channels) - 1),
    ),
}


def parser(command: str) -> Parser:
    """Return the parser of `dod-train vae`, `dod-train unet` or `dod-train ddpm`.

    Args:
        command: "vae", "unet" or "ddpm".

    Returns:
        The parser.
    """
    parser = training_parser(command, PRIORS[command].description, PRIORS[command].schedule)
    if command == "ddpm":
        parser.add_argument_group("images").add_argument(
            "--degraded-fraction",
            type=float,
            default=0.0,
            metavar="FRACTION",
            help="fraction of degraded images among those that the DDPM learns, 0 to 1 (default: %(default)s)",
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `dod-train vae`, `dod-train unet` or `dod-train ddpm`.

    Args:
        argv: name of the prior and arguments, by default those of the process.

    Returns:
        The exit code.

    Raises:
        ConfigError: the preset has no folder to write to, or existing weights would be lost.
        DataError: images are missing or unusable.
        TrainingError: see `dod.training.loop.train`.
    """
    command, words = command_name(argv, "dod-train", PRIORS)
    arguments = parser(command).parse_args(words)
    preset, schedule = training_preset(arguments), schedule_from(arguments)
    key, source = ("ddpm", preset.ddpm.source) if command == "ddpm" else ("base", preset.base.source)
    if source == "random":
        raise ConfigError(f"preset {preset.name} has a random {key}: set {key}.source to the folder to write")
    multiple = PRIORS[command].multiple(preset)
    if schedule.crop % multiple:
        raise ConfigError(f"--crop {schedule.crop}: it must be a multiple of {multiple} for this network")
    writes = {command: arguments.continue_training}
    check_output(arguments, preset, writes)
    degraded = arguments.degraded_fraction if command == "ddpm" else 0.0
    crops = samples_from(arguments, schedule, preset.conditions, clean_fraction=1 - degraded)
    preset = open_output(arguments, preset, writes)
    torch.manual_seed(schedule.seed)
    pretrain = {"vae": pretrain_vae, "unet": pretrain_unet, "ddpm": pretrain_ddpm}[command]
    pretrain(preset, crops, schedule, state_folder(arguments), arguments.continue_training)
    return 0


def pretrain_vae(preset: Preset, crops: Samples, schedule: Schedule, state: Path, continue_training: bool) -> None:
    """Train the autoencoder. Its scaling factor becomes 1 / deviation of the latents, as for Stable Diffusion.

    Args:
        preset: preset whose autoencoder is trained and written.
        crops: training samples; the clean images are used.
        schedule: schedule of the run.
        state: folder of the run's state.
        continue_training: start from the existing weights.
    """
    folder = preset.folder / preset.base.source / "vae"
    vae = read_part(AutoencoderKL, folder) if continue_training else new_autoencoder(preset.base.vae)
    run = _record(crops, schedule, continue_training)
    if continue_training and is_repeated(folder, read_record(folder), run):
        return
    log = train("vae", AutoencoderObjective(vae), crops, schedule, state)
    vae.eval()
    with torch.no_grad():
        sample = torch.stack([crops[i][1] for i in range(64)]).to(vae.device)
        deviation = posterior_of(vae, sample).mode().std().item()
    vae.register_to_config(scaling_factor=round(1 / deviation, 5))
    publish(vae, folder, _runs(folder, log, run, continue_training))


def pretrain_unet(preset: Preset, crops: Samples, schedule: Schedule, state: Path, continue_training: bool) -> None:
    """Train the latent UNet: epsilon objective on the scaled-linear schedule, with the preset's fixed prompt embedding.

    Args:
        preset: preset whose UNet is trained and written, with its prompt embedding and scheduler configuration.
        crops: training samples; the clean images are used.
        schedule: schedule of the run.
        state: folder of the run's state.
        continue_training: start from the existing weights.
    """
    folder = preset.folder / preset.base.source
    vae = read_part(AutoencoderKL, folder / "vae")
    unet = read_part(UNet2DConditionModel, folder / "unet") if continue_training else new_latent_unet(preset)
    prompt, step = random_prompt(preset.base), preset.step
    depends_on = {"vae": fingerprint(vae.state_dict()), **asdict(step)}
    run = _record(crops, schedule, continue_training, **depends_on)
    if continue_training and is_repeated(folder / "unet", read_record(folder / "unet"), run):
        return
    log = train("unet", LatentNoiseObjective(unet, vae, prompt, step), crops, schedule, state, depends_on)
    publish(unet, folder / "unet", _runs(folder / "unet", log, run, continue_training))
    write_safetensors({"prompt": prompt.half()}, folder / PROMPT_FILE)
    scheduler = {
        "_class_name": "DDIMScheduler",
        "beta_start": step.beta_start,
        "beta_end": step.beta_end,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": step.train_timesteps,
        "prediction_type": "epsilon",
    }
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=1) + "\n")


def pretrain_ddpm(preset: Preset, crops: Samples, schedule: Schedule, state: Path, continue_training: bool) -> None:
    """Train the pixel DDPM, whose encoder and middle block the MFM uses.

    Args:
        preset: preset whose DDPM is trained and written.
        crops: training samples; the degraded images are used.
        schedule: schedule of the run.
        state: folder of the run's state.
        continue_training: start from the existing weights.
    """
    folder = preset.folder / preset.ddpm.source
    ddpm = read_part(UNet2DModel, folder) if continue_training else new_ddpm(preset.ddpm)
    run = _record(crops, schedule, continue_training)
    if continue_training and is_repeated(folder, read_record(folder), run):
        return
    log = train("ddpm", PixelNoiseObjective(ddpm), crops, schedule, state)
    publish(ddpm, folder, _runs(folder, log, run, continue_training))


def _record(crops: Samples, schedule: Schedule, continue_training: bool, **depends_on: object) -> dict[str, Any]:
    """Return the record of a run without its log."""
    options = {"continue": continue_training, **depends_on}
    return {**training_record(schedule, [], **options), "samples": crops.identity}


def _runs(folder: Path, log: Log, run: dict[str, Any], continue_training: bool) -> list[dict[str, Any]]:
    """Return the records of the runs that made a part: earlier ones that this run continues, and this one."""
    before = read_record(folder) if continue_training else []
    say(f"{folder}: loss {log[-1]['loss']:.5f} after {run['schedule']['steps']} steps, {cost(log)}")
    return [*before, {**run, "log": log_excerpt(log)}]


if __name__ == "__main__":
    raise SystemExit(run_command(main))
