"""The two stages of the paper, and the calibration of the prototypes.

    python -m dod.training.stages 1 --photographs photographs/train --preset mini
    python -m dod.training.stages 2 --photographs photographs/train --preset mini
    python -m dod.training.stages calibrate --photographs photographs/train --preset mini

Stage 1 trains the adaptation (PLA: the encoder's LoRA, CLoRA, prompts and M) through the frozen decoder; stage 2 trains
the detail modules alone, or with `--decoder trained` the base's decoder too, which is rewritten: for a base of one's
own. `--decoder new` starts that from random weights. Each reads and writes the checkpoint that the preset names, or for
a shipped preset and with `--out` that of a copy. Stage 2 and calibration continue from the checkpoint that is there;
stage 1 does so with `--continue`, and needs `--overwrite` to replace it.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ..checkpoint import METADATA, copy_trained, load_checkpoint, read_metadata, save_checkpoint
from ..config import Preset
from ..errors import CheckpointError, ConfigError, run_command
from ..model.dod import DOD
from ..prototypes import statistics_of
from ..tensors import fingerprint
from .arguments import samples_from, schedule_from, training_parser
from .init import new_autoencoder
from .loop import cost, is_main_process, log_excerpt, process, say, train, training_record
from .losses import VGG
from .objectives import Adaptation, Detail
from .output import is_repeated, open_output, part_path, state_folder, training_preset
from .pretrain import kept_of, publish, read_part, record_of, replace_folder, unless_failed
from .state import Log, Schedule

CLEAN_FRACTION = 0.1
"""Of the samples, how many are left clean, so that a clean image is left alone."""
COMMANDS: dict[str, dict[str, Any]] = {
    "1": {
        "steps": 1000,
        "batch": 6,
        "crop": 128,
        "learning_rate": 1e-3,
        "rec_weight": 1.0,
        "perceptual_weight": 2.0,
        "dmd_weight": 1.0,
        "latent_weight": 0.0,
        "vgg": "",
        "relative": False,
        "gradient_checkpointing": False,
        "tile": [],
        "clean_fraction": CLEAN_FRACTION,
    },
    "2": {
        "steps": 1600,
        "batch": 8,
        "crop": 64,
        "learning_rate": 2e-3,
        "rec_weight": 1.0,
        "ssim_weight": 0.2,
        "gate_rate": 3.0,
        "gate_start": 0.2,
        "decoder": ("frozen", "trained", "new"),
        "plain_weight": 0.25,
        "decoder_rate": 1.0,
        "named": 0.0,
        "relative": False,
        "tile": [],
        "clean_fraction": CLEAN_FRACTION,
    },
    "calibrate": {"steps": 256, "crop": 256},
}
WITHOUT = {
    "2": {"continue"},
    "calibrate": {"state", "continue", *asdict(Schedule())} - {"steps", "crop", "seed"},
}
SHOWN = 4
"""Images that TensorBoard gets."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = training_parser(
        "python -m dod.training.stages", "The two stages of the paper, and calibration.", COMMANDS, WITHOUT
    )
    arguments = parser.parse_args(argv)
    preset, schedule = training_preset(arguments), schedule_from(arguments)
    check(arguments, preset, schedule)
    command, decoder = arguments.command, getattr(arguments, "decoder", "frozen")
    go_on, trained = getattr(arguments, "go_on", True), decoder != "frozen"
    if go_on and not (part_path(preset, "checkpoint") / METADATA).is_file():
        raise CheckpointError(f"no checkpoint at {part_path(preset, 'checkpoint')}: run stage 1 first")
    writes = {"checkpoint": go_on, **({"vae": decoder == "trained"} if trained else {})}
    preset = open_output(arguments, preset, writes)
    folder, base = part_path(preset, "checkpoint"), part_path(preset, "vae")
    if trained:
        finish_killed(base, folder)
    torch.manual_seed(schedule.seed)
    model = DOD.from_preset(preset)
    metadata = load_checkpoint(model, folder, any_base=command == "1") if go_on else {}
    rebase = bool(metadata) and metadata["base_sha256"] != model.base_sha256
    if rebase:
        model.prototypes, model.statistics = {}, None  # of c, which the DDPM gives
        say("the checkpoint was trained on other frozen weights: its prototypes are discarded")
    training = metadata.get("training", [])
    if command == "calibrate":
        calibrate(model, partial(samples_from, arguments, schedule, clean_fraction=0.0), schedule.steps)
        _save(model, folder, training)
        return 0
    dataset = samples_from(arguments, schedule, preset.conditions, arguments.clean_fraction)
    options = {
        key: getattr(arguments, key) for key in COMMANDS[command] if key not in {*vars(schedule), "clean_fraction"}
    }
    recorded = {**options, "continue": go_on} if command == "1" else options
    run = {"stage": int(command), **training_record(schedule, [], **recorded), "samples": dataset.identity}
    if not rebase and is_repeated(folder, training, run):
        return 0
    with unless_failed(base) if trained and is_main_process() else nullcontext():  # base and checkpoint, or neither
        stage = stage_1 if command == "1" else stage_2
        log = stage(model, dataset, schedule, state_folder(arguments), **options)
        run["log"] = log_excerpt(log)
        if trained:
            model = rebased(model, run)
        say(f"stage {command}: loss {log[-1]['loss']:.5f} after {schedule.steps} steps, {cost(log)}")
        _save(model, folder, [*training, run])
    if not model.prototypes:
        say(f"{folder} has no prototypes, which conditions need: run `python -m dod.training.stages calibrate`")
    return 0


def _save(model: DOD, folder: Path, training: list[dict[str, Any]]) -> None:
    if is_main_process():
        save_checkpoint(model, folder, torch.float16, training=training)


def check(arguments: Namespace, preset: Preset, schedule: Schedule) -> None:
    """Raises ConfigError for what does not fit the preset, before anything is loaded."""
    if preset.checkpoint is None:
        raise ConfigError(f"preset {preset.name} names no checkpoint: set `checkpoint` to the folder to write")
    sides = [("crop", schedule.crop), *(("tile", side) for side in getattr(arguments, "tile", ()))]
    for name, side in sides if arguments.command != "calibrate" else ():
        if side % preset.size_multiple or not 0 < side <= schedule.crop:
            raise ConfigError(
                f"--{name} {side}: the model takes multiples of {preset.size_multiple}, a tile no larger than its crop"
            )
    if arguments.command == "calibrate" and schedule.steps < 2:
        raise ConfigError(f"--steps {schedule.steps}: a covariance about the prototypes takes two samples or more")
    base = preset.folder / preset.base.source / "vae"
    if getattr(arguments, "decoder", "frozen") != "frozen" and not (base / "config.json").is_file():
        raise ConfigError(
            f"--decoder {arguments.decoder} rewrites the base's decoder, and base.source = {preset.base.source} is no "
            "folder that has one here: copy the base into a folder of your own, and name that"
        )


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
    tile: Sequence[int] = (),
) -> Log:
    """Equation (11), see `Adaptation`. vgg: the weights of `losses.VGG`; where none is given that term is off.

    gradient_checkpointing: the UNet's activations are computed again in the backward pass, for less memory.
    """
    if perceptual_weight and not vgg:
        say("no --vgg: the perceptual term (9) is off")
    if not (rec_weight or (perceptual_weight and vgg) or dmd_weight or latent_weight):
        raise ConfigError("stage 1 has nothing to minimise: give one of its terms a weight, the perceptual one a --vgg")
    if gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    features = VGG(vgg) if perceptual_weight and vgg else None
    objective = Adaptation(model, rec_weight, perceptual_weight, dmd_weight, latent_weight, features, tile, relative)
    objective.samples = samples(dataset)
    weights = {"rec_weight": rec_weight, "perceptual_weight": perceptual_weight, "dmd_weight": dmd_weight}
    stands_on = settings(model, **weights, latent_weight=latent_weight, vgg=vgg, relative=relative, tile=tile)
    return train("stage-1", objective, dataset, schedule, state, stands_on)


def stage_2(
    model: DOD,
    dataset: Dataset,
    schedule: Schedule,
    state: Path,
    rec_weight: float = 1.0,
    ssim_weight: float = 0.2,
    gate_rate: float = 1.0,
    gate_start: float = 0.0,
    decoder: str = "frozen",
    plain_weight: float = 0.25,
    decoder_rate: float = 1.0,
    named: float = 0.0,
    relative: bool = False,
    tile: Sequence[int] = (),
) -> Log:
    """Equation (13), see `Detail`. decoder: "frozen", "trained" with the modules, or "new": trained from nothing."""
    if decoder == "new":
        fresh = new_autoencoder(model.preset.base.vae).state_dict()
        for name, parameter in model.decoder.base_parameters().items():
            parameter.data.copy_(fresh[name])
    trained = decoder != "frozen"
    if not trained and not model.detail_parameters():
        raise ConfigError(f"preset {model.preset.name} has no detail modules: stage 2 has nothing to train")
    options: dict[str, Any] = {"gate_rate": gate_rate, "gate_start": gate_start, "decoder_rate": decoder_rate}
    options |= {"relative": relative, "tile": tile, "named": named}
    objective = Detail(model, rec_weight, ssim_weight, decoder=trained, plain=plain_weight, **options)
    objective.samples = samples(dataset)
    options |= {"rec_weight": rec_weight, "ssim_weight": ssim_weight, "plain_weight": plain_weight, "decoder": decoder}
    adaptation = fingerprint(model.adaptation_parameters())
    return train("stage-2", objective, dataset, schedule, state, settings(model, adaptation=adaptation, **options))


def settings(model: DOD, **options: object) -> dict[str, object]:
    """What a run stands on beside schedule, samples and start: frozen weights, the preset's settings, its options."""
    preset = {
        f"{part}.{key}": value
        for part in ("mfm", "lora", "step", "detail")
        for key, value in asdict(getattr(model.preset, part)).items()
    }
    return {"frozen weights": model.base_sha256, **preset, **options}


def rebased(model: DOD, run: dict[str, object]) -> DOD:
    """The same model on its base with the decoder it trained, which is written into the folder that the preset names.

    run: what that folder's record of runs gets.
    """
    preset = model.preset
    folder = preset.folder / preset.base.source / "vae"
    vae = read_part(AutoencoderKL, folder)
    vae.load_state_dict({**vae.state_dict(), **model.decoder.base_parameters()})
    publish(vae, folder, [*record_of(folder), run])
    process().wait_for_everyone()
    on_new_base = DOD.from_preset(preset)
    copy_trained(model, on_new_base)
    return on_new_base


def finish_killed(base: Path, checkpoint: Path) -> None:
    """Puts back the base that a run was killed after writing, before its checkpoint, to go on from the run's state."""
    kept = kept_of(base)
    if is_main_process() and kept.is_dir():
        runs, recorded = record_of(base), read_metadata(checkpoint).get("training", [])
        anew = record_of(kept) == runs[:-1] != runs and runs[-1].get("stage") == 2
        if anew and runs[-1] not in recorded:
            say(f"a run was killed between base and checkpoint: {base} is put back as it was before")
            replace_folder(kept, base)
    process().wait_for_everyone()


def samples(dataset: Dataset) -> dict[str, tuple[Tensor, Tensor]]:
    """The first (degraded, clean) pairs of a data set."""
    return {str(i): dataset[i][:2] for i in range(SHOWN)}


@torch.no_grad()
def calibrate(model: DOD, samples_of: Callable[[Sequence[str]], Dataset], count: int) -> None:
    """Each condition's prototype, the mean c over `count` samples of it; c's mean over all, and its covariance about
    the prototypes: what photographs differ in, which is to be divided out, without what degradations differ in.

    samples_of: gives the degraded samples of the conditions named.
    """
    per_condition = {}
    for name in tqdm(model.preset.conditions, desc="calibrate"):
        dataset = samples_of((name,))
        per_condition[name] = torch.cat([model.modulation(dataset[i][0][None])[0] for i in range(count)])
    model.prototypes = {name: c.mean(0) for name, c in per_condition.items()}
    mean = torch.cat(list(per_condition.values())).mean(0)
    about = torch.cat([c - c.mean(0) + mean for c in per_condition.values()])
    model.statistics = torch.from_numpy(statistics_of(about.numpy())).float()


if __name__ == "__main__":
    raise SystemExit(run_command(main))
