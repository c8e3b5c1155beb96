"""The paper's ablations (Tables 4, 5 and 6) with equal, short runs, compared with the paper's results.

    dod-evaluate ablations --photographs photographs/train --held-out photographs/held_out
    dod-evaluate ablations --data DATA --setting rain-haze-noise --test sets/input sets/truth

One ablation is not in the paper: detail modules half as wide as the decoder (`detail.narrow`).

Both stages of every variant are trained from the same base, seed and samples. A result is the mean over degradations:
those of the preset, applied to the held-out photographs, or the subfolders of a test set. With short runs a difference
of a few tenths of a dB is noise; its sign can be compared with the paper. Finished and interrupted runs in `--out` are
reused. `docs/reproduce.md` has the command for runs as long as the paper's.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dod_runtime.console import Parser, progress

from ..config import Preset
from ..data.dataset import load_photographs
from ..data.degradations import degrade, rng_for
from ..data.images import centre_crop
from ..errors import ConfigError, DataError, run_command
from ..model.dod import DOD
from ..training.arguments import add_source, preset_from, samples_from
from ..training.schedule_arguments import add_schedule
from ..training.stage_arguments import CLEAN_FRACTION, W_LR_MULTIPLIER, W_START
from ..training.stages import stage_1, stage_2
from ..training.state import Schedule
from .ablation_table import ROWS, AblationVariant, Results, Values, as_markdown
from .evaluate import evaluate, find_scenes
from .metrics import Metric
from .restoration import restore_image
from .scorer import Scorer, find_metrics

__all__ = ["main", "parser", "train_and_measure", "write"]


Measure = Callable[[DOD], Values]
"""Function that measures a model."""


def parser() -> Parser:
    """Return the parser of `dod-evaluate ablations`."""
    parser = Parser(
        prog="dod-evaluate ablations",
        description="Train and measure the variants of the paper's ablations (Tables 4 to 6) with runs of equal "
        "length, short by default.",
    )
    add_source(parser)
    test = parser.add_argument_group("test images", "Give either --held-out or --test.")
    measured = test.add_mutually_exclusive_group(required=True)
    measured.add_argument(
        "--held-out", type=Path, metavar="FOLDER", help="folder of clean photographs, which are degraded synthetically"
    )
    measured.add_argument(
        "--test",
        type=Path,
        nargs=2,
        metavar=("INPUT", "TRUTH"),
        help="folders of degraded and clean images, as for `dod-evaluate images`",
    )
    test.add_argument(
        "--size",
        type=int,
        default=256,
        metavar="PX",
        help="side in px of the center crops of --held-out (default: %(default)s)",
    )
    test.add_argument(
        "--crop-to-multiple",
        type=int,
        default=16,
        metavar="N",
        help="crop the center of the images of --test to multiples of N px (default: %(default)s)",
    )
    test.add_argument(
        "--metrics",
        nargs="+",
        default=["ssim"],
        metavar="NAME",
        help="metrics in addition to PSNR; see `dod-evaluate images` (default: ssim)",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--checkpoint",
        default="mini",
        metavar="PRESET",
        help="preset whose base is adapted: name, folder or preset.yaml (default: %(default)s)",
    )
    fields = ("batch_size", "crop", "workers", "precision", "seed")
    schedule = add_schedule(parser, Schedule(batch_size=6, crop=64, workers=0), fields)
    schedule.add_argument(
        "--steps",
        type=int,
        nargs=2,
        default=(300, 300),
        metavar=("STAGE1", "STAGE2"),
        help="number of steps of stage 1 and stage 2 (default: 300 300)",
    )
    schedule.add_argument(
        "--learning-rates",
        type=float,
        nargs=2,
        default=(1e-3, 2e-3),
        metavar=("STAGE1", "STAGE2"),
        help="peak learning rates of stage 1 and stage 2 (default: 0.001 0.002)",
    )
    loss = parser.add_argument_group("loss of stage 1")
    for name, weight, term in (
        ("latent", 1.0, "latent term: squared error of the restored latent at three scales"),
        ("rec", 0.0, "reconstruction term (8)"),
        ("perceptual", 0.0, "perceptual term (9), which needs --vgg"),
        ("dmd", 0.0, "distribution matching term (10)"),
    ):
        loss.add_argument(
            f"--{name}-weight",
            type=float,
            default=weight,
            metavar="WEIGHT",
            help=f"weight of the {term} (default: %(default)s)",
        )
    loss.add_argument(
        "--vgg",
        default="",
        metavar="FILE",
        help="VGG-16 weights of the perceptual term, as for `dod-train stage1` (default: none)",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out",
        type=Path,
        default=Path("build/ablations"),
        metavar="FOLDER",
        help="folder of the tables and of the states of the runs (default: %(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `dod-evaluate ablations`.

    Args:
        argv: arguments, by default those of the process.

    Returns:
        The exit code.

    Raises:
        ConfigError: options do not fit the preset, or a metric is unknown.
        DataError: images are missing or unusable.
        TrainingError: see `dod.training.loop.train`.
    """
    arguments = parser().parse_args(argv)
    preset = preset_from(arguments)
    for name, side in (("crop", arguments.crop), ("size", arguments.size)):
        if side < 1 or side % preset.size_multiple:
            raise ConfigError(f"--{name} {side}: it must be a multiple of {preset.size_multiple}")
    metrics = find_metrics([name for name in arguments.metrics if name != "psnr"])
    measure = _on_photographs(arguments, preset) if arguments.test is None else _on_test_set(arguments)
    results: dict[AblationVariant, Mapping[bool, Values]] = {}
    for variant in progress(list(dict.fromkeys(row.variant for row in ROWS)), label="variants"):
        results[variant] = train_and_measure(variant, arguments, measure)
        write(results, metrics, arguments)
    print(as_markdown(results, metrics))
    print(f"\n{arguments.out / 'ablations.md'}")
    return 0


def train_and_measure(variant: AblationVariant, arguments: Namespace, measure: Measure) -> dict[bool, Values]:
    """Train both stages of a variant and measure it.

    Args:
        variant: the model.
        arguments: arguments of `parser`.
        measure: measures a model.

    Returns:
        Results without (False) and with (True) detail modules.
    """
    keys = {"lora.conditional": variant.conditional, "lora.rank": variant.rank, "lora.alpha": float(variant.rank)}
    keys["detail.narrow"] = variant.narrow
    torch.manual_seed(arguments.seed)
    model = DOD.from_preset(preset_from(arguments, keys))
    schedules = [
        Schedule(
            steps,
            arguments.batch_size,
            arguments.crop,
            learning_rate=learning_rate,
            seed=arguments.seed,
            workers=arguments.workers,
            precision=arguments.precision,
        )
        for steps, learning_rate in zip(arguments.steps, arguments.learning_rates, strict=True)
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
    stage_2(model, dataset, schedules[1], state, w_lr_multiplier=W_LR_MULTIPLIER, w_start=W_START)
    return {False: without, True: measure(model)}


def _on_photographs(arguments: Namespace, preset: Preset) -> Measure:
    """Return a function that measures the center of held-out photographs with each degradation. Raises DataError."""
    size = arguments.size
    held_out = load_photographs(arguments.held_out)
    if small := [name for name, pixels in held_out.items() if min(pixels.shape[:2]) < size]:
        raise DataError(
            f"{arguments.held_out / small[0]} is smaller than --size {size}: remove it or use a smaller size"
        )

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


def _on_test_set(arguments: Namespace) -> Measure:
    """Return a function that measures images of a test set as `dod-evaluate images` does. Raises DataError."""
    scenes = find_scenes(*arguments.test, restored=False)

    def measure(model: DOD) -> Values:
        restore = partial(restore_image, model)
        options = {"multiple": arguments.crop_to_multiple, "device": _device(model)}
        return evaluate(
            scenes, ["psnr", *arguments.metrics], restore=restore, show_progress=True, **options
        ).result.mean.values

    return measure


def _device(model: DOD) -> str:
    return next(model.parameters()).device.type


def write(results: Results, metrics: Sequence[Metric], arguments: Namespace) -> None:
    """Write the tables as Markdown, and the results with their settings as JSON.

    Args:
        results: results by variant.
        metrics: metrics in addition to PSNR.
        arguments: arguments of `parser`.
    """
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "ablations.md").write_text(as_markdown(results, metrics) + "\n", "utf-8")
    rows = [{**asdict(row), **results[row.variant][row.detail]} for row in ROWS if row.variant in results]
    text = json.dumps({"setting": vars(arguments), "rows": rows}, indent=1, default=str)
    (arguments.out / "ablations.json").write_text(text + "\n")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
