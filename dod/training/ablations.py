"""The paper's ablations (Tables 4, 5 and 6) at a small equal budget, beside what the paper reports, and one of our own:
detail modules half as wide as the decoder (`detail.narrow`).

    python -m dod.training.ablations --photographs photographs/train --held-out photographs/held_out

Each variant trains both stages from the same base, seed and samples; the figure is the mean PSNR over the held-out
photographs and the preset's degradations. At such a budget a difference of a few tenths of a dB is noise: the sign is
what can be compared with the paper.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..config import load_preset
from ..data.dataset import PhotographCrops, load_photographs
from ..data.degradations import degrade, rng_for
from ..errors import ConfigError, DataError, run_command
from ..evaluation.metrics import psnr, ssim
from ..evaluation.restoration import restore_picture
from ..evaluation.scores import table
from ..model import DOD
from .loop import PRECISIONS
from .stages import CLEAN_FRACTION, stage_1, stage_2
from .state import Schedule


@dataclass(frozen=True)
class Variant:
    """One pair of trained stages: where the LoRA is conditional (`none`, `unet`, `unet+encoder`), its rank, and by how
    much narrower than the decoder the detail modules are."""

    conditional: str
    rank: int
    narrow: int = 1


@dataclass(frozen=True)
class Row:
    """A line of a table. paper: the paper's PSNR in dB, or a word where it gives none."""

    table: str
    name: str
    variant: Variant
    detail: bool
    paper: float | str


FULL, PLAIN = Variant("unet", 8), Variant("none", 8)
ROWS = (
    Row("Table 4", "neither CLoRA nor DEM", PLAIN, False, 23.05),
    Row("Table 4", "CLoRA", FULL, False, 24.60),
    Row("Table 4", "DEM", PLAIN, True, 31.83),
    Row("Table 4", "CLoRA and DEM", FULL, True, 31.87),
    Row("Table 5", "CLoRA in encoder and UNet", Variant("unet+encoder", 8), True, 30.68),
    Row("Table 5", "CLoRA in the UNet only", FULL, True, 31.87),
    Row("Table 6", "rank 4", Variant("unet", 4), True, "collapses"),
    Row("Table 6", "rank 8", FULL, True, 31.87),
    Row("Table 6", "rank 16", Variant("unet", 16), True, 31.68),
    Row("Detail modules", "as wide as the decoder", FULL, True, 31.87),
    Row("Detail modules", "half as wide", Variant("unet", 8, 2), True, "not tried"),
)

Figures = dict[Variant, dict[bool, tuple[float, float]]]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dod.training.ablations", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--photographs", type=Path, required=True, help="folder of clean photographs to train on")
    parser.add_argument("--held-out", type=Path, required=True, help="folder of clean photographs to measure on")
    parser.add_argument("--preset", default="mini", help="whose base is adapted; default %(default)s")
    parser.add_argument("--steps", type=int, nargs=2, default=(300, 300), metavar=("ONE", "TWO"), help="of each stage")
    parser.add_argument("--batch", type=int, default=6, help="default %(default)s")
    parser.add_argument("--crop", type=int, default=64, help="of training, in px; default %(default)s")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32", help="default %(default)s")
    parser.add_argument("--size", type=int, default=256, help="of the measured crops, in px; default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument(
        "--latent-weight", type=float, default=1.0, help="of stage 1's latent term; default %(default)s"
    )
    parser.add_argument("--rec-weight", type=float, default=0.0, help="of stage 1's picture term; default %(default)s")
    parser.add_argument("--dmd-weight", type=float, default=0.0, help="of stage 1's DMD term; default %(default)s")
    parser.add_argument("--out", type=Path, default=Path("build/ablations"), help="default %(default)s")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    preset = load_preset(arguments.preset)
    for name, side in (("crop", arguments.crop), ("size", arguments.size)):
        if side < 1 or side % preset.size_multiple:
            raise ConfigError(f"--{name} {side}: the model takes multiples of {preset.size_multiple}")
    held_out = load_photographs(arguments.held_out)
    if small := [name for name, pixels in held_out.items() if min(pixels.shape[:2]) < arguments.size]:
        raise DataError(f"{arguments.held_out / small[0]} is smaller than --size {arguments.size}")

    figures: Figures = {}
    variants = list(dict.fromkeys(row.variant for row in ROWS))
    for variant in tqdm(variants, desc="variants"):
        figures[variant] = measure(variant, arguments, held_out)
        write(figures, arguments)
    print(as_markdown(figures))
    print(f"\n{arguments.out / 'ablations.md'}")
    return 0


def measure(
    variant: Variant, arguments: argparse.Namespace, held_out: dict[str, np.ndarray]
) -> dict[bool, tuple[float, float]]:
    """(PSNR, SSIM) without and with the detail modules, after both stages."""
    keys = {"lora.conditional": variant.conditional, "lora.rank": variant.rank, "lora.alpha": float(variant.rank)}
    keys["detail.narrow"] = variant.narrow
    torch.manual_seed(arguments.seed)
    model = DOD.from_preset(load_preset(arguments.preset, keys))
    crop, seed = arguments.crop, arguments.seed
    dataset = PhotographCrops(arguments.photographs, crop, seed, model.preset.conditions, CLEAN_FRACTION)
    one, two = arguments.steps
    schedule = Schedule(
        one, arguments.batch, crop, learning_rate=1e-3, seed=seed, workers=0, precision=arguments.precision
    )
    state = arguments.out / "state" / f"{variant.conditional}-{variant.rank}-{variant.narrow}"
    stage_1(
        model,
        dataset,
        schedule,
        state,
        rec_weight=arguments.rec_weight,
        perceptual_weight=0.0,
        dmd_weight=arguments.dmd_weight,
        latent_weight=arguments.latent_weight,
    )
    without = quality(model, held_out, arguments.size, arguments.seed)
    stage_2(model, dataset, replace(schedule, steps=two, learning_rate=2e-3), state, gate_rate=3.0, gate_start=0.2)
    return {False: without, True: quality(model, held_out, arguments.size, arguments.seed)}


def quality(model: DOD, photographs: dict[str, np.ndarray], size: int, seed: int) -> tuple[float, float]:
    """Mean (PSNR in dB, SSIM) of the middle `size` px of photographs, with each of the preset's degradations."""
    found = []
    for name, pixels in photographs.items():
        top, left = ((side - size) // 2 for side in pixels.shape[:2])
        truth = pixels[top : top + size, left : left + size]
        clean = truth.astype(np.float32) / np.float32(255)
        for degradation in model.preset.conditions:
            degraded, _ = degrade(clean, degradation, rng_for(name, degradation, seed))
            output = restore_picture(model, np.rint(degraded * 255).astype(np.uint8))
            found.append((psnr(output, truth), ssim(output, truth)))
    return float(np.mean([p for p, _ in found])), float(np.mean([s for _, s in found]))


def as_markdown(figures: Figures) -> str:
    """The tables: PSNR and SSIM reached, the paper's PSNR, each against the table's first line."""
    parts = []
    for title in dict.fromkeys(row.table for row in ROWS):
        rows = [row for row in ROWS if row.table == title and row.variant in figures]
        cells: list[list[Any]] = []
        for row in rows:
            reached, similarity = figures[row.variant][row.detail]
            first = figures[rows[0].variant][rows[0].detail][0]
            paper, base = row.paper, rows[0].paper
            theirs = f"{paper - base:+.2f}" if isinstance(paper, float) and isinstance(base, float) else "-"
            listed = f"{paper:.2f}" if isinstance(paper, float) else paper
            cells.append([row.name, f"{reached:.2f}", f"{reached - first:+.2f}", f"{similarity:.4f}", listed, theirs])
        headers = [title, "PSNR dB", "against line 1", "SSIM", "paper's PSNR", "against line 1"]
        parts.append(table(headers, cells, markdown=True))
    return "\n\n".join(parts)


def write(figures: Figures, arguments: argparse.Namespace) -> None:
    """The tables as Markdown, and the figures with their setting as JSON."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "ablations.md").write_text(as_markdown(figures) + "\n", "utf-8")
    setting = {
        key: value if isinstance(value, int | float | tuple | list) else str(value)
        for key, value in vars(arguments).items()
    }
    rows = [
        {**asdict(row), "psnr": figures[row.variant][row.detail][0], "ssim": figures[row.variant][row.detail][1]}
        for row in ROWS
        if row.variant in figures
    ]
    (arguments.out / "ablations.json").write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
