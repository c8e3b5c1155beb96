"""The two stages of the paper, and the calibration of the prototypes.

    python -m dod.training.stages 1 --photographs photographs/train --preset mini
    python -m dod.training.stages 2 --photographs photographs/train --preset mini
    python -m dod.training.stages calibrate --photographs photographs/train --preset mini

Stage 1 trains the adaptation (PLA: the encoder's LoRA, CLoRA, prompts and M) through the frozen decoder; stage 2 trains
the detail modules alone. Each reads and writes the checkpoint that the preset names.

This first form uses the reconstruction terms, equations (8) and (13), without perceptual distance and without
distribution matching.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..checkpoint import METADATA, load_checkpoint, load_preset, read_metadata, save_checkpoint
from ..config import Preset
from ..data.dataset import PhotographCrops
from ..errors import CheckpointError, ConfigError, run_command
from ..model import DOD
from .loop import Schedule, add_schedule_arguments, autocast, schedule_from, train

DEFAULTS = {
    "1": {"steps": 1000, "batch": 6, "crop": 128, "learning_rate": 1e-3},
    "2": {"steps": 1600, "batch": 6, "crop": 128, "learning_rate": 1e-3},
    "calibrate": {"steps": 64, "batch": 1, "crop": 256},
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dod.training.stages", description=__doc__.splitlines()[0])
    stages = parser.add_subparsers(dest="stage", required=True)
    for stage, defaults in DEFAULTS.items():
        command = stages.add_parser(stage)
        command.add_argument("--photographs", type=Path, required=True, help="folder of clean photographs")
        command.add_argument("--preset", default="mini")
        command.add_argument("--state", type=Path, default=Path("build/training"), help="where the run can be resumed from")
        add_schedule_arguments(command, **defaults)
    arguments = parser.parse_args(argv)
    preset, schedule = load_preset(arguments.preset), schedule_from(arguments)
    if preset.checkpoint is None:
        raise ConfigError(f"preset {preset.name} names no checkpoint: set `checkpoint` to the folder to write")
    folder = preset.folder / preset.checkpoint
    model, facts = DOD.from_preset(preset), {"training": {}}
    if (folder / METADATA).is_file():
        facts["training"] = read_metadata(folder).get("training", {})
        if arguments.stage != "1":
            load_checkpoint(model, folder)
    elif arguments.stage != "1":
        raise CheckpointError(f"no checkpoint at {folder}: run stage 1 first")
    torch.manual_seed(schedule.seed)
    if arguments.stage == "calibrate":
        calibrate(model, arguments.photographs, schedule)
    else:
        stage = stage_1 if arguments.stage == "1" else stage_2
        log = stage(model, crops(arguments.photographs, preset, schedule), schedule, arguments.state)
        facts["training"][f"stage {arguments.stage}"] = {"schedule": vars(schedule), "log": log[:: max(1, len(log) // 20)]}
        print(f"stage {arguments.stage}: loss {log[-1]['loss']:.5f} after {schedule.steps} steps")
    save_checkpoint(model, folder, torch.float16, **facts)
    return 0


def crops(photographs: Path, preset: Preset, schedule: Schedule, clean_fraction: float = 0.1) -> PhotographCrops:
    """Random degraded crops of the preset's conditions, and a share that is left clean."""
    return PhotographCrops(
        photographs, schedule.crop, schedule.seed, degradations=preset.conditions, clean_fraction=clean_fraction
    )


def stage_1(model: DOD, dataset: PhotographCrops, schedule: Schedule, state: Path) -> list[dict[str, float]]:
    """Equation (8): the decoded restored latent against the clean picture, decoder frozen and without detail modules."""
    parameters = model.adaptation_parameters()
    model.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)

    def loss(batch: Iterable[Tensor], generator: torch.Generator) -> Tensor:
        degraded, clean = _channels_last(batch)
        with autocast(schedule):
            _, modulation = model.modulation(degraded)
            latent, _ = model.encode(degraded, modulation)
            image = model.decoder(model.unet(latent, modulation))
        return F.mse_loss(image, clean)

    return train("stage-1", parameters, loss, dataset, schedule, state)


def stage_2(model: DOD, dataset: PhotographCrops, schedule: Schedule, state: Path) -> list[dict[str, float]]:
    """Equation (13)'s reconstruction term: the detail modules alone."""
    parameters = model.detail_parameters()
    model.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)

    def loss(batch: Iterable[Tensor], generator: torch.Generator) -> Tensor:
        degraded, clean = _channels_last(batch)
        with autocast(schedule):
            with torch.no_grad():
                _, modulation = model.modulation(degraded)
                latent, skips = model.encode(degraded, modulation)
                restored = model.unet(latent, modulation)
            image = model.decoder(restored, skips)
        return F.mse_loss(image, clean)

    return train("stage-2", parameters, loss, dataset, schedule, state)


@torch.no_grad()
def calibrate(model: DOD, photographs: Path, schedule: Schedule) -> None:
    """Prototype of each condition: the mean c over `schedule.steps` crops of that degradation; and c's mean and deviation."""
    per_condition = {}
    for name in tqdm(model.preset.conditions, desc="calibrate"):
        dataset = PhotographCrops(photographs, schedule.crop, schedule.seed, degradations=(name,), clean_fraction=0.0)
        per_condition[name] = torch.cat([model.modulation(dataset[i][0][None])[0] for i in range(schedule.steps)])
    model.prototypes = {name: c.mean(0) for name, c in per_condition.items()}
    everything = torch.cat(list(per_condition.values()))
    model.statistics = torch.stack([everything.mean(0), everything.std(0)])


def _channels_last(batch: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    degraded, clean = batch[0], batch[1]
    return degraded.contiguous(memory_format=torch.channels_last), clean


if __name__ == "__main__":
    raise SystemExit(run_command(main))
