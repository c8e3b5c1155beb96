"""The two stages of the paper, and the calibration of the prototypes.

    python -m dod.training.stages 1 --photographs photographs/train --preset mini
    python -m dod.training.stages 2 --photographs photographs/train --preset mini
    python -m dod.training.stages calibrate --photographs photographs/train --preset mini

Stage 1 trains the adaptation (PLA: the encoder's LoRA, CLoRA, prompts and M) through the frozen decoder; stage 2 trains
the detail modules alone. Each reads and writes the checkpoint that the preset names; stage 1 starts anew but for
`--continue`, stage 2 goes on from what is there.

This first form uses the reconstruction terms, equations (8) and (13), without perceptual distance and without
distribution matching.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from .. import clora
from ..checkpoint import METADATA, load_checkpoint, save_checkpoint
from ..config import Preset, load_preset
from ..data.dataset import PhotographCrops
from ..errors import CheckpointError, ConfigError, run_command
from ..model import DOD
from ..tensors import fingerprint
from .loop import Log, Schedule, autocast, schedule_from, train, training_parser, training_record

COMMANDS: dict[str, dict[str, Any]] = {
    "1": {"steps": 1000, "batch": 6, "crop": 128, "learning_rate": 1e-3, "rec_weight": 1.0, "latent_weight": 0.0},
    "2": {"steps": 1600, "batch": 8, "crop": 64, "learning_rate": 2e-3, "gate_rate": 30.0},
    "calibrate": {"steps": 64, "batch": 1, "crop": 256},
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = training_parser("python -m dod.training.stages", "The two stages of the paper, and calibration.", COMMANDS)
    arguments = parser.parse_args(argv)
    preset, schedule = load_preset(arguments.preset), schedule_from(arguments)
    if preset.checkpoint is None:
        raise ConfigError(f"preset {preset.name} names no checkpoint: set `checkpoint` to the folder to write")
    if arguments.command != "calibrate" and schedule.crop % preset.size_multiple:
        raise ConfigError(f"--crop {schedule.crop}: the model takes multiples of {preset.size_multiple}")
    folder = preset.folder / preset.checkpoint
    anew = arguments.command == "1" and not arguments.go_on
    if not anew and not (folder / METADATA).is_file():
        raise CheckpointError(f"no checkpoint at {folder}: run stage 1 first")
    torch.manual_seed(schedule.seed)
    model = DOD.from_preset(preset)
    training = [] if anew else load_checkpoint(model, folder).get("training", [])
    if arguments.command == "calibrate":
        calibrate(model, arguments.photographs, schedule)
    else:
        dataset = crops(arguments.photographs, preset, schedule)
        stage = stage_1 if arguments.command == "1" else stage_2
        options = {key: getattr(arguments, key) for key in COMMANDS[arguments.command] if key not in vars(schedule)}
        log = stage(model, dataset, schedule, arguments.state, **options)
        training.append({"stage": int(arguments.command), **training_record(schedule, log, **options)})
        print(f"stage {arguments.command}: loss {log[-1]['loss']:.5f} after {schedule.steps} steps")
    save_checkpoint(model, folder, torch.float16, training=training)
    return 0


def crops(photographs: Path, preset: Preset, schedule: Schedule, clean_fraction: float = 0.1) -> PhotographCrops:
    """Random degraded crops of the preset's conditions, and a share that is left clean."""
    return PhotographCrops(
        photographs, schedule.crop, schedule.seed, degradations=preset.conditions, clean_fraction=clean_fraction
    )


def stage_1(
    model: DOD, dataset: Dataset, schedule: Schedule, state: Path, rec_weight: float = 1.0, latent_weight: float = 0.0
) -> Log:
    """Equation (8): the decoded restored latent against the clean picture; decoder frozen, without detail modules.

    latent_weight: of MSE(z0, the base encoder's latent of the clean picture). The closed form multiplies an error in
    eps by 14.6; a base of short training starts so far off that the picture alone gives no useful gradient, the latent
    does. With rec_weight 0 the decoder is not run.
    """
    parameters = _train_only(model, model.adaptation_parameters())
    target = clora.base_copy(model.encoder) if latent_weight else None

    def loss(batch: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        degraded, clean = _channels_last(batch)
        total = degraded.new_zeros(())
        with autocast(schedule):
            _, modulation = model.modulation(degraded)
            restored = model.unet(model.encode(degraded, modulation)[0], modulation)
            if rec_weight:
                total = total + rec_weight * F.mse_loss(model.decoder(restored), clean)
            if target is not None:
                with torch.no_grad():
                    wanted, _ = target(clean)
                total = total + latent_weight * F.mse_loss(restored, wanted)
        return total

    identity = f"{model.base_sha256} {rec_weight} {latent_weight}"
    return train("stage-1", parameters, loss, dataset, schedule, state, identity)


def stage_2(model: DOD, dataset: Dataset, schedule: Schedule, state: Path, gate_rate: float = 1.0) -> Log:
    """Equation (13)'s reconstruction term: the detail modules alone.

    gate_rate: how many times faster the modules' w learn. Each starts at 0 and gates its whole module, which learns
    nothing to speak of while w is small. The norm of equation (8) is taken for each picture, as it is printed there;
    its square would leave the gradient to low light and haze, whose errors are the largest.
    """
    parameters = _train_only(model, model.detail_parameters())

    def loss(batch: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        degraded, clean = _channels_last(batch)
        with autocast(schedule):
            with torch.no_grad():
                _, modulation = model.modulation(degraded)
                latent, skips = model.encode(degraded, modulation)
                restored = model.unet(latent, modulation)
            image = model.decoder(restored, skips)
        return F.mse_loss(image, clean, reduction="none").mean(dim=(1, 2, 3)).sqrt().mean()

    frozen = f"{model.base_sha256} {fingerprint(model.adaptation_parameters())} {gate_rate}"
    gates = {name for name, parameter in parameters.items() if parameter.ndim == 0}
    return train("stage-2", parameters, loss, dataset, schedule, state, frozen, (gates.__contains__, gate_rate))


@torch.no_grad()
def calibrate(model: DOD, photographs: Path, schedule: Schedule) -> None:
    """Each condition's prototype, the mean c over `schedule.steps` crops of it; c's mean and deviation over all."""
    per_condition = {}
    for name in tqdm(model.preset.conditions, desc="calibrate"):
        dataset = PhotographCrops(photographs, schedule.crop, schedule.seed, degradations=(name,), clean_fraction=0.0)
        per_condition[name] = torch.cat([model.modulation(dataset[i][0][None])[0] for i in range(schedule.steps)])
    model.prototypes = {name: c.mean(0) for name, c in per_condition.items()}
    everything = torch.cat(list(per_condition.values()))
    model.statistics = torch.stack([everything.mean(0), everything.std(0)])


def _train_only(model: DOD, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    model.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    return parameters


def _channels_last(batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    degraded, clean = batch[0], batch[1]
    return degraded.contiguous(memory_format=torch.channels_last), clean


if __name__ == "__main__":
    raise SystemExit(run_command(main))
