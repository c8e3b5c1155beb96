"""The paper's ablations (Tables 4, 5 and 6) at a small equal budget, beside what the paper reports, and one of our own:
detail modules half as wide as the decoder (`detail.narrow`).

    python -m dod.evaluation.ablations --photographs photographs/train --held-out photographs/held_out
    python -m dod.evaluation.ablations --data DATA --setting rain-haze-noise --test sets/input sets/truth ...

Each variant trains both stages from the same base, seed and samples; a figure is the mean of the tasks' means, over the
held-out photographs with each of the preset's degradations, or over the folders of a test set. At such a budget a
difference of a few tenths of a dB is noise: the sign is what can be compared with the paper. Runs that are finished or
interrupted are taken up from `--out`, and `docs/reproduce.md` has the command at the paper's budget.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..config import Preset
from ..data.dataset import load_photographs
from ..data.degradations import degrade, rng_for
from ..data.images import centre_crop
from ..errors import ConfigError, DataError, run_command
from ..model.dod import DOD
from ..training.arguments import add_source, preset_from, samples_from
from ..training.loop import PRECISIONS
from ..training.stages import CLEAN_FRACTION, stage_1, stage_2
from ..training.state import Schedule
from .evaluate import evaluate, find_scenes
from .metrics import Metric
from .restoration import restore_image
from .scorer import Scorer, find_metrics
from .scores import table


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

Values = Mapping[str, float]
Figures = Mapping[Variant, Mapping[bool, Values]]
Measure = Callable[[DOD], Values]
"""Gives a trained model's figures by metric."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    preset = preset_from(arguments)
    for name, side in (("crop", arguments.crop), ("size", arguments.size)):
        if side < 1 or side % preset.size_multiple:
            raise ConfigError(f"--{name} {side}: the model takes multiples of {preset.size_multiple}")
    metrics = find_metrics([name for name in arguments.metrics if name != "psnr"])
    measure = _on_photographs(arguments, preset) if arguments.test is None else _on_a_test_set(arguments)
    figures: dict[Variant, Mapping[bool, Values]] = {}
    for variant in tqdm(list(dict.fromkeys(row.variant for row in ROWS)), desc="variants"):
        figures[variant] = trained(variant, arguments, measure)
        write(figures, metrics, arguments)
    print(as_markdown(figures, metrics))
    print(f"\n{arguments.out / 'ablations.md'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dod.evaluation.ablations", description=(__doc__ or "").split("\n")[0]
    )
    add_source(parser)
    judged = parser.add_mutually_exclusive_group(required=True)
    judged.add_argument("--held-out", type=Path, help="folder of clean photographs, degraded here, to measure on")
    judged.add_argument(
        "--test",
        type=Path,
        nargs=2,
        metavar=("INPUT", "TRUTH"),
        help="folders to measure on, as `dod.evaluation.evaluate` takes",
    )
    parser.add_argument("--preset", default="mini", help="whose base is adapted; default %(default)s")
    parser.add_argument("--steps", type=int, nargs=2, default=(300, 300), metavar=("ONE", "TWO"), help="of each stage")
    parser.add_argument(
        "--learning-rates", type=float, nargs=2, default=(1e-3, 2e-3), metavar=("ONE", "TWO"), help="of each stage"
    )
    parser.add_argument("--batch", type=int, default=6, help="default %(default)s")
    parser.add_argument("--crop", type=int, default=64, help="of training, in px; default %(default)s")
    parser.add_argument("--workers", type=int, default=0, help="that read samples; default %(default)s")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32", help="default %(default)s")
    parser.add_argument("--size", type=int, default=256, help="of the held-out crops, in px; default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    for name, weight, term in (
        ("latent", 1.0, "latent"),
        ("rec", 0.0, "image"),
        ("perceptual", 0.0, "perceptual"),
        ("dmd", 0.0, "DMD"),
    ):
        parser.add_argument(
            f"--{name}-weight", type=float, default=weight, help=f"of stage 1's {term} term; default %(default)s"
        )
    parser.add_argument("--vgg", default="", help="the perceptual term's weights, see `stages 1`")
    parser.add_argument("--metrics", nargs="+", default=["ssim"], metavar="NAME", help="beside PSNR; default: ssim")
    parser.add_argument("--crop-to-multiple", type=int, default=16, help="of the test images; default %(default)s")
    parser.add_argument("--out", type=Path, default=Path("build/ablations"), help="default %(default)s")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def trained(variant: Variant, arguments: argparse.Namespace, measure: Measure) -> dict[bool, Values]:
    """The figures without and with the detail modules, after both stages."""
    keys = {"lora.conditional": variant.conditional, "lora.rank": variant.rank, "lora.alpha": float(variant.rank)}
    keys["detail.narrow"] = variant.narrow
    torch.manual_seed(arguments.seed)
    model = DOD.from_preset(preset_from(arguments, keys))
    schedules = [
        Schedule(
            steps,
            arguments.batch,
            arguments.crop,
            learning_rate=rate,
            seed=arguments.seed,
            workers=arguments.workers,
            precision=arguments.precision,
        )
        for steps, rate in zip(arguments.steps, arguments.learning_rates, strict=True)
    ]
    dataset = samples_from(arguments, schedules[0], model.preset.conditions, CLEAN_FRACTION)
    state = arguments.out / "state" / f"{variant.conditional}-{variant.rank}-{variant.narrow}"
    stage_1(
        model,
        dataset,
        schedules[0],
        state,
        rec_weight=arguments.rec_weight,
        perceptual_weight=arguments.perceptual_weight,
        dmd_weight=arguments.dmd_weight,
        latent_weight=arguments.latent_weight,
        vgg=arguments.vgg,
    )
    without = measure(model)
    stage_2(model, dataset, schedules[1], state, gate_rate=3.0, gate_start=0.2)
    return {False: without, True: measure(model)}


def _on_photographs(arguments: argparse.Namespace, preset: Preset) -> Measure:
    """The middle `size` px of the held-out photographs, with each of the preset's degradations. Raises DataError."""
    size = arguments.size
    held_out = load_photographs(arguments.held_out)
    if small := [name for name, pixels in held_out.items() if min(pixels.shape[:2]) < size]:
        raise DataError(f"{arguments.held_out / small[0]} is smaller than --size {size}")

    def measure(model: DOD) -> Values:
        with Scorer(["psnr", *arguments.metrics], _device(model)) as scorer:
            for name, pixels in held_out.items():
                truth = centre_crop(pixels, size)
                clean = truth.astype(np.float32) / np.float32(255)
                for degradation in preset.conditions:
                    degraded, _ = degrade(clean, degradation, rng_for(name, degradation, arguments.seed))
                    output = restore_image(model, np.rint(degraded * 255).astype(np.uint8))
                    scorer.add(f"{degradation}/{name}", output, truth)
            return scorer.result().mean.values

    return measure


def _on_a_test_set(arguments: argparse.Namespace) -> Measure:
    """All images of the folders, as `python -m dod.evaluation.evaluate` measures them. Raises DataError."""
    scenes = find_scenes(*arguments.test, restored=False)

    def measure(model: DOD) -> Values:
        restore = partial(restore_image, model)
        options = {"multiple": arguments.crop_to_multiple, "device": _device(model)}
        return evaluate(scenes, ["psnr", *arguments.metrics], restore=restore, bar=True, **options).result.mean.values

    return measure


def _device(model: DOD) -> str:
    return next(model.parameters()).device.type


def as_markdown(figures: Figures, metrics: Sequence[Metric]) -> str:
    """The tables: PSNR and other metrics reached, the paper's PSNR, both PSNRs against the table's first line."""
    parts = []
    for title in dict.fromkeys(row.table for row in ROWS):
        rows = [row for row in ROWS if row.table == title and row.variant in figures]
        cells: list[list[Any]] = []
        for row in rows:
            reached, first = (figures[each.variant][each.detail] for each in (row, rows[0]))
            ours = f"{reached['psnr'] - first['psnr']:+.2f}"
            paper, base = row.paper, rows[0].paper
            theirs = f"{paper - base:+.2f}" if isinstance(paper, float) and isinstance(base, float) else "-"
            listed = f"{paper:.2f}" if isinstance(paper, float) else paper
            others = [f"{reached[metric.name]:.{metric.digits}f}" for metric in metrics]
            cells.append([row.name, f"{reached['psnr']:.2f}", ours, *others, listed, theirs])
        labels = [metric.label for metric in metrics]
        headers = [title, "PSNR dB", "against line 1", *labels, "paper's PSNR", "against line 1"]
        parts.append(table(headers, cells, markdown=True))
    return "\n\n".join(parts)


def write(figures: Figures, metrics: Sequence[Metric], arguments: argparse.Namespace) -> None:
    """The tables as Markdown, and the figures with their setting as JSON."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "ablations.md").write_text(as_markdown(figures, metrics) + "\n", "utf-8")
    rows = [{**asdict(row), **figures[row.variant][row.detail]} for row in ROWS if row.variant in figures]
    text = json.dumps({"setting": vars(arguments), "rows": rows}, indent=1, default=str)
    (arguments.out / "ablations.json").write_text(text + "\n")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
