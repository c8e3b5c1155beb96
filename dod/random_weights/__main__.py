"""A base, a DDPM and a DOD checkpoint at the scale of the paper, with random weights in the published layouts.

    dod-train random-weights build/sd21                      # SD 2.1-base, a 256 px DDPM, and a DOD checkpoint on them
    dod-train random-weights build/sd21 --parts adm dod      # then a checkpoint on OpenAI's ADM, in build/sd21/adm
    python export/build_engines.py build/sd21

They serve to measure export, engines, memory, latency and precision at full size without the published weights. The
layers are scaled on photographs so that activations are about as large as those of a trained network, and the last
layers are fitted so that latents and images keep their scale. The model restores nothing.
"""

from __future__ import annotations

import gc
import json
import resource
import time
from argparse import SUPPRESS, Namespace
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from dod_runtime.console import Parser

from ..config import Preset, load_preset
from ..data.dataset import PhotographCrops
from ..errors import ConfigError, run_command
from .base_parts import write_adm, write_ddpm, write_stable_diffusion
from .checkpoint_part import write_checkpoint
from .plan import PARTS, PLACES, Variant, check_plan, variants, write_preset
from .tables import LayerStatistics, by_block, say, summary

__all__ = ["main", "parser"]

DTYPES = {"float32": torch.float32, "float16": torch.float16}
PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "docs" / "samples" / "clean"
RECORD = "full_size.json"
"""File in the written folder with the statistics of its layers and of its checkpoints."""
RANDOM = {"base.source": "random", "ddpm.source": "random"}
NOTE = "random weights scaled on photographs, for measurements at full size: the model restores nothing"


def parser() -> Parser:
    """Return the parser of the command."""
    description = "Write a base, a DDPM and a DOD checkpoint at the scale of the paper, with random weights."
    parser = Parser(prog="dod-train random-weights", description=description)
    add = parser.add_argument_group("output").add_argument
    add("out", type=Path, metavar="FOLDER", help="folder to write, which then is a preset")
    add(
        "--parts", nargs="+", choices=PARTS, default=["sd", "ddpm", "dod"], help="parts to write (default: sd ddpm dod)"
    )
    structure = "preset whose structure is written: name, folder or preset.yaml (default: %(default)s)"
    add("--checkpoint", default="sd21", metavar="PRESET", help=structure)
    add("--dtype", choices=list(DTYPES), default="float32", help="data type of the bases (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the random generator (default: %(default)s)")
    add = parser.add_argument_group("images to scale the layers on").add_argument
    photographs = "folder of photographs that the crops are taken from (default: docs/samples/clean)"
    add("--photographs", type=Path, default=PHOTOGRAPHS, metavar="FOLDER", help=photographs)
    add("--crop", type=int, default=256, metavar="PX", help="side of the crops in pixels (default: %(default)s)")
    add("--num-images", type=int, default=8, metavar="N", help="number of crops to scale on (default: %(default)s)")
    per_condition = "number of crops of each condition to compute its prototype from (default: %(default)s)"
    add("--num-samples", type=int, default=2, metavar="N", help=per_condition)
    for former, option in (("--images", "num_images"), ("--samples", "num_samples")):
        add(former, type=int, dest=option, default=SUPPRESS, help=SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments; those of the process by default.

    Returns:
        The exit code.

    Raises:
        ConfigError: an option or the preset is invalid.
        CheckpointError: a part exists already, a part that it depends on is missing, or the disk is full.
    """
    arguments = parser().parse_args(argv)
    preset, out, parts = load_preset(arguments.checkpoint, RANDOM), arguments.out, arguments.parts
    preset = replace(preset, base=replace(preset.base, seed=arguments.seed))
    if arguments.crop < 1 or arguments.crop % preset.size_multiple:
        raise ConfigError(f"--crop {arguments.crop}: it must be a multiple of {preset.size_multiple}")
    for option in ("num_images", "num_samples"):
        if getattr(arguments, option) < 1:
            raise ConfigError(f"--{option.replace('_', '-')} {getattr(arguments, option)}: it must be at least 1")
    dtype = DTYPES[arguments.dtype]
    check_plan(preset, out, parts, dtype.itemsize)
    *images, unseen = _images(arguments, preset.conditions).split(1)
    images = torch.cat(images)
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    layers: LayerStatistics = {}
    for part in [part for part in PLACES if part in parts]:
        layers |= _write(part, preset, out, images, dtype, arguments.seed)
        say(f"{time.monotonic() - started:.0f} s: {out / PLACES[part]} written")
    if layers:
        say(by_block(layers))
    measured = {}
    for variant in variants(parts, out):
        write_preset(arguments.checkpoint, variant, checkpoint="dod" in parts)
        if "dod" in parts:
            measured[variant.ddpm] = _write_checkpoint(arguments, variant, unseen)
            say(f"{time.monotonic() - started:.0f} s: {variant.folder / 'dod'} written")
            say(summary(measured[variant.ddpm]))
    _record(out, {"note": NOTE, "seed": arguments.seed}, layers, measured)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    spent = time.monotonic() - started
    say(f"{out}: {size / 1e9:.2f} GB, written in {spent:.0f} s; peak memory {peak / 1e9:.1f} GB; {NOTE}")
    return 0


def _images(arguments: Namespace, conditions: Sequence[str]) -> Tensor:
    """Return clean crops of the photographs, [B + 1, 3, crop, crop] in [-1, 1]. The last one is not fitted to."""
    crops = _crops(arguments, conditions)
    return torch.stack([crops[i][1] for i in range(arguments.num_images + 1)])


def _crops(arguments: Namespace, conditions: Sequence[str]) -> PhotographCrops:
    return PhotographCrops(arguments.photographs, arguments.crop, arguments.seed, conditions, clean_fraction=0.0)


def _write(part: str, preset: Preset, out: Path, images: Tensor, dtype: torch.dtype, seed: int) -> LayerStatistics:
    """Write a part to a temporary folder, which is renamed once it is complete."""
    write = {"sd": write_stable_diffusion, "ddpm": write_ddpm, "adm": write_adm}[part]
    with TemporaryDirectory(prefix=".", dir=out) as temporary:
        folder = Path(temporary) / part
        folder.mkdir()
        layers = write(preset, folder, images, dtype, seed)
        folder.rename(out / PLACES[part])
    gc.collect()
    return layers


def _write_checkpoint(arguments: Namespace, variant: Variant, image: Tensor) -> dict[str, float]:
    preset, folder = load_preset(variant.folder), variant.folder / "dod"
    return write_checkpoint(preset, folder, partial(_crops, arguments), arguments.num_samples, image, arguments.seed)


def _record(
    out: Path, facts: dict[str, object], layers: LayerStatistics, measured: dict[str, dict[str, float]]
) -> None:
    """Add measurements to the record in the folder."""
    file = out / RECORD
    before = json.loads(file.read_text()) if file.is_file() else {}
    values = {"layers": before.get("layers", {}) | layers, "dod": before.get("dod", {}) | measured}
    file.write_text(json.dumps(facts | values, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
