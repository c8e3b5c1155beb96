"""A base, a DDPM and a DOD checkpoint at the paper's scale in the published layouts, with random weights.

    python -m dod.random_weights build/sd21                      # SD 2.1-base, a 256 px DDPM, a DOD checkpoint on them
    python -m dod.random_weights build/sd21 --parts adm dod      # then the same on OpenAI's ADM, in build/sd21/adm
    python export/build_engines.py build/sd21

For work at full size where no published weights are at hand: export, engines, memory, latency, precision. The layers
are scaled on real photographs so that activations are about as large as a trained network's, and the last layers fitted
so that latents and images come back at about their size. It restores nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ..config import Preset, load_preset
from ..data.dataset import PhotographCrops
from ..errors import ConfigError, run_command
from .base_parts import Figures, write_adm, write_ddpm, write_stable_diffusion
from .checkpoint_part import write_checkpoint
from .plan import PARTS, PLACES, Variant, check_plan, variants, write_preset
from .report import by_block, say, summary

DTYPES = {"float32": torch.float32, "float16": torch.float16}
PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "docs" / "samples" / "clean"
FIGURES = "full_size.json"
FROM_NOTHING = {"base.source": "random", "ddpm.source": "random"}
NOTE = "random weights scaled on photographs, for work at full size: they restore nothing"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    preset, out, parts = load_preset(arguments.preset, FROM_NOTHING), arguments.out, arguments.parts
    preset = replace(preset, base=replace(preset.base, seed=arguments.seed))
    if arguments.crop < 1 or arguments.crop % preset.size_multiple:
        raise ConfigError(f"--crop {arguments.crop}: it must be a multiple of {preset.size_multiple}")
    for option in ("images", "samples"):
        if getattr(arguments, option) < 1:
            raise ConfigError(f"--{option} {getattr(arguments, option)}: it must be at least 1")
    dtype = DTYPES[arguments.dtype]
    check_plan(preset, out, parts, dtype.itemsize)
    *images, unseen = _images(arguments, preset.conditions).split(1)
    images = torch.cat(images)
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    figures: Figures = {}
    for part in [part for part in PLACES if part in parts]:
        figures |= _write(part, preset, out, images, dtype, arguments.seed)
        say(f"{time.monotonic() - started:.0f} s: {out / PLACES[part]} written")
    if figures:
        say(by_block(figures))
    measured = {}
    for variant in variants(parts, out):
        write_preset(arguments.preset, variant, checkpoint="dod" in parts)
        if "dod" in parts:
            measured[variant.ddpm] = _write_checkpoint(arguments, variant, unseen)
            say(f"{time.monotonic() - started:.0f} s: {variant.folder / 'dod'} written")
            say(summary(measured[variant.ddpm]))
    _record(out, {"note": NOTE, "seed": arguments.seed}, figures, measured)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    spent = time.monotonic() - started
    say(f"{out}: {size / 1e9:.2f} GB, written in {spent:.0f} s; peak memory {peak / 1e9:.1f} GB; {NOTE}")
    return 0


def _parser() -> argparse.ArgumentParser:
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m dod.random_weights", description=description)
    add = parser.add_argument
    add("out", type=Path, help="folder to write; it then serves as a preset")
    add("--parts", nargs="+", choices=PARTS, default=["sd", "ddpm", "dod"], help="default: sd ddpm dod")
    add("--preset", default="sd21", help="whose structure to write: name, folder or file (default: %(default)s)")
    add("--dtype", choices=list(DTYPES), default="float32", help="how the bases are stored (default: %(default)s)")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--photographs", type=Path, default=PHOTOGRAPHS, help="what to scale on (default: the repository's samples)")
    add("--crop", type=int, default=256, help="side of their crops in px (default: %(default)s)")
    add("--images", type=int, default=8, help="crops that the base is scaled on (default: %(default)s)")
    add("--samples", type=int, default=2, help="of each condition, for its prototype (default: %(default)s)")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _images(arguments: argparse.Namespace, conditions: Sequence[str]) -> Tensor:
    """[B + 1, 3, crop, crop] in [-1, 1]: clean crops of the photographs, the last to measure on what was not fitted."""
    crops = _crops(arguments, conditions)
    return torch.stack([crops[i][1] for i in range(arguments.images + 1)])


def _crops(arguments: argparse.Namespace, conditions: Sequence[str]) -> PhotographCrops:
    return PhotographCrops(arguments.photographs, arguments.crop, arguments.seed, conditions, clean_fraction=0.0)


def _write(part: str, preset: Preset, out: Path, images: Tensor, dtype: torch.dtype, seed: int) -> Figures:
    """One part, in a temporary folder that takes its place when it is whole."""
    write = {"sd": write_stable_diffusion, "ddpm": write_ddpm, "adm": write_adm}[part]
    with TemporaryDirectory(prefix=".", dir=out) as temporary:
        folder = Path(temporary) / part
        folder.mkdir()
        figures = write(preset, folder, images, dtype, seed)
        folder.rename(out / PLACES[part])
    gc.collect()
    return figures


def _write_checkpoint(arguments: argparse.Namespace, variant: Variant, image: Tensor) -> dict[str, float]:
    preset, folder = load_preset(variant.folder), variant.folder / "dod"
    return write_checkpoint(preset, folder, partial(_crops, arguments), arguments.samples, image, arguments.seed)


def _record(out: Path, facts: dict[str, object], figures: Figures, measured: dict[str, dict[str, float]]) -> None:
    """Adds what was measured to the folder's record."""
    file = out / FIGURES
    before = json.loads(file.read_text()) if file.is_file() else {}
    values = {"layers": before.get("layers", {}) | figures, "dod": before.get("dod", {}) | measured}
    file.write_text(json.dumps(facts | values, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run_command(main))
