"""The priors that a preset without published weights needs: autoencoder, latent UNet, pixel DDPM.

    python -m dod.training.pretrain vae  --photographs photographs/train --preset mini
    python -m dod.training.pretrain unet --photographs photographs/train --preset mini
    python -m dod.training.pretrain ddpm --photographs photographs/train --preset mini

Each writes its part, in half precision and in diffusers' layout, into the folders that the preset names, with a record
of its runs. `--continue` starts from the part that is there instead of from random weights, which would replace it and
take `--overwrite`. A shipped preset is trained in a copy, `build/presets/NAME`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ModelMixin, UNet2DConditionModel, UNet2DModel
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME

from ..config import Preset
from ..errors import CheckpointError, ConfigError, run_command
from ..model.base import PROMPT_FILE, Model, load_part, new_ddpm, random_prompt
from ..tensors import fingerprint, write_safetensors
from .arguments import Samples, samples_from, schedule_from, training_parser
from .init import new_autoencoder, new_latent_unet
from .loop import cost, is_main_process, log_excerpt, say, train, training_record
from .objectives import Autoencoder, LatentNoise, PixelNoise, posterior_of
from .output import check_output, is_repeated, open_output, state_folder, training_preset
from .state import Log, Schedule

RECORD = "training.json"
COMMANDS: dict[str, dict[str, Any]] = {
    "vae": {"steps": 2000, "batch": 8, "crop": 96, "learning_rate": 1e-3},
    "unet": {"steps": 1200, "batch": 12, "crop": 128, "learning_rate": 5e-4},
    "ddpm": {"steps": 800, "batch": 16, "crop": 64, "learning_rate": 5e-4, "degraded": 0.0},
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = training_parser("python -m dod.training.pretrain", "The priors that a preset needs.", COMMANDS)
    arguments = parser.parse_args(argv)
    preset, schedule = training_preset(arguments), schedule_from(arguments)
    key, source = ("ddpm", preset.ddpm.source) if arguments.command == "ddpm" else ("base", preset.base.source)
    if source == "random":
        raise ConfigError(f"preset {preset.name} has a random {key}: set {key}.source to the folder to write")
    multiple = {
        "vae": preset.vae_factor,
        "unet": preset.size_multiple,
        "ddpm": 2 ** (len(preset.ddpm.block_out_channels) - 1),
    }[arguments.command]
    if schedule.crop % multiple:
        raise ConfigError(f"--crop {schedule.crop}: this network takes multiples of {multiple}")
    writes = {arguments.command: arguments.go_on}
    check_output(arguments, preset, writes)
    degraded = arguments.degraded if arguments.command == "ddpm" else 0.0
    crops = samples_from(arguments, schedule, preset.conditions, clean_fraction=1 - degraded)
    preset = open_output(arguments, preset, writes)
    torch.manual_seed(schedule.seed)
    pretrain = {"vae": pretrain_vae, "unet": pretrain_unet, "ddpm": pretrain_ddpm}[arguments.command]
    pretrain(preset, crops, schedule, state_folder(arguments), arguments.go_on)
    return 0


def pretrain_vae(preset: Preset, crops: Samples, schedule: Schedule, state: Path, go_on: bool) -> None:
    """Autoencoder. Its scaling factor becomes 1 / the latents' deviation, as SD's was chosen."""
    folder = preset.folder / preset.base.source / "vae"
    vae = read_part(AutoencoderKL, folder) if go_on else new_autoencoder(preset.base.vae)
    run = record(crops, schedule, go_on)
    if go_on and is_repeated(folder, record_of(folder), run):
        return
    log = train("vae", Autoencoder(vae), crops, schedule, state)
    vae.eval()
    with torch.no_grad():
        sample = torch.stack([crops[i][1] for i in range(64)]).to(vae.device)
        deviation = posterior_of(vae, sample).mode().std().item()
    vae.register_to_config(scaling_factor=round(1 / deviation, 5))
    publish(vae, folder, runs_of(folder, log, run, go_on))


def pretrain_unet(preset: Preset, crops: Samples, schedule: Schedule, state: Path, go_on: bool) -> None:
    """Latent UNet: the epsilon objective on SD's scaled-linear schedule, with the preset's fixed prompt embedding."""
    folder = preset.folder / preset.base.source
    vae = read_part(AutoencoderKL, folder / "vae")
    unet = read_part(UNet2DConditionModel, folder / "unet") if go_on else new_latent_unet(preset)
    prompt, step = random_prompt(preset.base), preset.step
    stands_on = {"vae": fingerprint(vae.state_dict()), **asdict(step)}
    run = record(crops, schedule, go_on, **stands_on)
    if go_on and is_repeated(folder / "unet", record_of(folder / "unet"), run):
        return
    log = train("unet", LatentNoise(unet, vae, prompt, step), crops, schedule, state, stands_on)
    publish(unet, folder / "unet", runs_of(folder / "unet", log, run, go_on))
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


def pretrain_ddpm(preset: Preset, crops: Samples, schedule: Schedule, state: Path, go_on: bool) -> None:
    """Pixel DDPM, of which the encoder and middle block become the MFM's eyes."""
    folder = preset.folder / preset.ddpm.source
    ddpm = read_part(UNet2DModel, folder) if go_on else new_ddpm(preset.ddpm)
    run = record(crops, schedule, go_on)
    if go_on and is_repeated(folder, record_of(folder), run):
        return
    log = train("ddpm", PixelNoise(ddpm), crops, schedule, state)
    publish(ddpm, folder, runs_of(folder, log, run, go_on))


def read_part(kind: type[Model], folder: Path) -> Model:
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"no {folder.name} at {folder}: run `python -m dod.training.pretrain {folder.name}` first"
        )
    return load_part(kind, str(folder))


def record(crops: Samples, schedule: Schedule, go_on: bool, **stands_on: object) -> dict[str, Any]:
    """Return what decides a run, as it is recorded beside the part that it makes."""
    options = {"continue": go_on, **stands_on}
    return {**training_record(schedule, [], **options), "samples": crops.identity}


def runs_of(folder: Path, log: Log, run: dict[str, Any], go_on: bool) -> list[dict[str, Any]]:
    """The record of the runs that made a part: those before, where this one went on from them, and this one."""
    before = record_of(folder) if go_on else []
    say(f"{folder}: loss {log[-1]['loss']:.5f} after {run['schedule']['steps']} steps, {cost(log)}")
    return [*before, {**run, "log": log_excerpt(log)}]


def record_of(folder: Path) -> list[dict[str, Any]]:
    """The runs that made what lies in a folder; none where that came from elsewhere."""
    return json.loads((folder / RECORD).read_text()) if (folder / RECORD).is_file() else []


def publish(model: ModelMixin, folder: Path, runs: list[dict[str, Any]]) -> None:
    """Replace what the folder holds, once its successor is whole. training.json lists the runs that made it."""
    if not is_main_process():
        return
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        model.half().save_config(temporary)
        config = json.loads((temporary / "config.json").read_text())
        config.pop("_name_or_path", None)  # the folder that --continue started from is nobody's business
        (temporary / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        write_safetensors(tensors, temporary / SAFETENSORS_WEIGHTS_NAME, {"format": "pt"})
        (temporary / RECORD).write_text(json.dumps(runs) + "\n")
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(successor: Path, folder: Path) -> None:
    """Puts `successor` in the place of `folder`, in two renames: no moment of it sees half of one."""
    before = folder.with_name(f".{folder.name}.before")
    shutil.rmtree(before, ignore_errors=True)
    if folder.exists():
        folder.rename(before)
    successor.rename(folder)
    shutil.rmtree(before, ignore_errors=True)


def kept_of(folder: Path) -> Path:
    """Where `unless_failed` keeps what `folder` held."""
    return folder.with_name(f".{folder.name}.kept")


@contextmanager
def unless_failed(folder: Path) -> Iterator[None]:
    """Puts back what `folder` holds where the block fails, so that it and what is written after it change together.

    A process that is killed leaves it at `kept_of(folder)`.
    """
    kept = kept_of(folder)
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(folder, kept)
    try:
        yield
    except BaseException:
        replace_folder(kept, folder)
        raise
    shutil.rmtree(kept, ignore_errors=True)  # all is written: nothing is lost with it


if __name__ == "__main__":
    raise SystemExit(run_command(main))
