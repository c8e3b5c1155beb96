"""Metrics of restored images, as tables, JSON and a contact sheet.

    dod-evaluate images OUTPUTS TRUTHS --inputs DEGRADED --sheet sheet.png  # outputs of any method
    dod-evaluate images DEGRADED TRUTHS --checkpoint mini --save OUTPUTS    # restored first
    dod-evaluate images OUTPUTS TRUTHS --metrics psnr ssim lpips fid musiq  # with pyiqa: extra eval-iqa

The folders hold images of the same names in the same subfolders; suffixes may differ. First-level subfolders are
degradations, and the last row of the table is the mean of their means. The JSON describes each metric exactly.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from dod.data.images import Pixels, crop_to_multiple, degradation_of, match_images, read_rgb
from dod.errors import ConfigError, DataError, run_command
from dod.evaluation.arguments import add_model_options
from dod.evaluation.contact_sheet import SheetEntry, contact_sheet
from dod.evaluation.metrics import CORE
from dod.evaluation.scorer import Scorer
from dod.evaluation.scores import EvaluationResult, Score, as_json, markdown, text
from dod_runtime.console import Parser, progress

__all__ = ["Evaluation", "Scene", "evaluate", "find_scenes", "main", "parser"]

SHOWN = 3
"""Scenes of each degradation on the contact sheet."""


@dataclass(frozen=True)
class Scene:
    """Files of an image.

    Attributes:
        name: name of the image.
        truth: clean image.
        output: restored image; None if it is to be restored.
        degraded: degraded image; None if it is unknown.
    """

    name: str
    truth: Path
    output: Path | None = None
    degraded: Path | None = None


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`.

    Attributes:
        result: the results.
        settings: exact variant of each metric, as JSON values.
        shown: first scenes of each degradation, for a contact sheet.
    """

    result: EvaluationResult
    settings: dict[str, dict[str, object]]
    shown: list[SheetEntry]


def evaluate(
    scenes: Sequence[Scene],
    metrics: Sequence[str] = tuple(CORE),
    *,
    restore: Callable[[Pixels], Pixels] | None = None,
    multiple: int = 1,
    save: Path | None = None,
    device: str = "cpu",
    show_progress: bool = False,
) -> Evaluation:
    """Measure scenes, and restore them first where they have no output.

    Args:
        scenes: the scenes.
        metrics: names of metrics.
        restore: restores uint8 [H, W, 3]; needed for scenes without an output.
        multiple: crop the center of all images to multiples of this number of px.
        save: folder for restored images.
        device: device of perceptual metrics.
        show_progress: show a progress bar.

    Returns:
        The evaluation.

    Raises:
        ConfigError: unknown metric.
        DataError: images cannot be compared, or a metric is not available.
    """
    shown: dict[str, list[SheetEntry]] = {}
    with Scorer(metrics, device) as scorer:
        for scene in progress(scenes, label="evaluating") if show_progress else scenes:
            degraded, output, truth = _images(scene, restore, multiple)
            if save and scene.output is None:
                _write(save / f"{scene.name}.png", output)
            score = scorer.add(scene.name, output, truth)
            entries = shown.setdefault(degradation_of(scene.name), [])
            if len(entries) < SHOWN:
                images = [output, truth] if degraded is None else [degraded, output, truth]
                entries.append(SheetEntry(_caption(score, len(images)), images))
        result = scorer.result()
        return Evaluation(result, scorer.settings, [entry for entries in shown.values() for entry in entries])


def find_scenes(folder: Path, truths: Path, inputs: Path | None = None, restored: bool = True) -> list[Scene]:
    """Match images of two or three folders by name.

    Args:
        folder: folder of restored images, or of degraded ones.
        truths: folder of clean images.
        inputs: folder of degraded images, if `folder` has restored ones.
        restored: `folder` has restored images.

    Returns:
        The scenes, sorted by name.

    Raises:
        DataError: a folder is missing or empty, or an image has no counterpart.
    """
    degraded = match_images(inputs, truths) if inputs else {}
    found = match_images(folder, truths).items()
    if not restored:
        return [Scene(name, truth, degraded=path) for name, (path, truth) in found]
    return [Scene(name, truth, path, degraded[name][0] if inputs else None) for name, (path, truth) in found]


def parser() -> Parser:
    """Return the parser of `dod-evaluate images`."""
    parser = Parser(
        prog="dod-evaluate images",
        description="Compare restored images with clean ones; with --checkpoint, restore degraded images first.",
    )
    parser.add_argument(
        "folder",
        type=Path,
        metavar="OUTPUTS",
        help="folder of restored images; with --checkpoint, of degraded images",
    )
    parser.add_argument(
        "truths",
        type=Path,
        metavar="TRUTHS",
        help="folder of clean images with the same names; suffixes may differ",
    )
    metrics = parser.add_argument_group("metrics")
    metrics.add_argument(
        "--metrics",
        nargs="+",
        default=list(CORE),
        metavar="NAME",
        help="metrics to compute: psnr, ssim, and with the extra eval-iqa lpips, dists, fid, niqe, musiq, maniqa, "
        "clipiqa, ... (default: psnr ssim)",
    )
    metrics.add_argument(
        "--crop-to-multiple",
        type=int,
        default=1,
        metavar="N",
        help="crop the center of all images to multiples of N px; most papers use 16 (default: %(default)s)",
    )
    metrics.add_argument(
        "--device",
        metavar="NAME",
        help="device of model and perceptual metrics: cpu or cuda (default: cuda if present)",
    )
    model = add_model_options(parser, default=None)
    model.add_argument("--save", type=Path, metavar="FOLDER", help="write restored images to FOLDER (default: discard)")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--json", type=Path, metavar="FILE", help="write results and settings as JSON (default: table on stdout only)"
    )
    output.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the tables as Markdown (default: table on stdout only)"
    )
    output.add_argument(
        "--sheet",
        type=Path,
        metavar="FILE",
        help="write a contact sheet of input (if known), output and clean image (default: none)",
    )
    output.add_argument(
        "--inputs",
        type=Path,
        metavar="FOLDER",
        help="folder of the degraded images, for the contact sheet (default: not shown)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `dod-evaluate images`.

    Args:
        argv: arguments, by default those of the process.

    Returns:
        The exit code.

    Raises:
        CheckpointError: the checkpoint is not readable.
        ConfigError: options contradict each other, or a metric is unknown.
        DataError: images cannot be compared, or a metric is not available.
    """
    arguments = parser().parse_args(argv)
    _check(arguments)
    scenes = find_scenes(arguments.folder, arguments.truths, arguments.inputs, arguments.checkpoint is None)
    with_torch = arguments.checkpoint is not None or any(name not in CORE for name in arguments.metrics)
    device = arguments.device or (_best_device() if with_torch else "cpu")
    given = {name: getattr(arguments, name) for name in ("folder", "truths", "inputs", "checkpoint")}
    settings = {name: str(value) for name, value in given.items() if value is not None}
    restore = None
    if arguments.checkpoint is not None:
        from dod.checkpoint import load_model  # here, so that restored images are measured without torch
        from dod.evaluation.restoration import restore_image

        model = load_model(arguments.checkpoint, arguments.base, arguments.ddpm).to(device)
        restore = partial(restore_image, model)
        settings |= {"preset": model.preset.name, "base_sha256": model.base_sha256}
    done = evaluate(
        scenes,
        arguments.metrics,
        restore=restore,
        multiple=arguments.crop_to_multiple,
        save=arguments.save,
        device=device,
        show_progress=True,
    )
    print(text(done.result))
    data = {**settings, "crop_to_multiple": arguments.crop_to_multiple, **as_json(done.result, done.settings)}
    files = {
        arguments.json: json.dumps(data, indent=1, allow_nan=False),
        arguments.markdown: markdown(done.result, done.settings),
    }
    for path, content in files.items():
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n", "utf-8")
    if arguments.sheet:
        arguments.sheet.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(done.shown, per_line=SHOWN).save(arguments.sheet)
    return 0


def _check(arguments: Namespace) -> None:
    """Raise ConfigError for options that contradict each other, before anything is read."""
    if arguments.crop_to_multiple < 1:
        raise ConfigError(f"--crop-to-multiple {arguments.crop_to_multiple}: it must be at least 1")
    if arguments.checkpoint is None:
        for name in ("base", "ddpm", "save"):
            if getattr(arguments, name) is not None:
                raise ConfigError(f"--{name} applies to --checkpoint only: remove it or give --checkpoint")
    elif arguments.inputs:
        raise ConfigError(f"--inputs {arguments.inputs}: not with --checkpoint, whose first folder holds them")
    if arguments.save and arguments.save.exists() and any(arguments.save.iterdir()):
        raise ConfigError(f"--save {arguments.save} is not empty: choose another folder")
    if arguments.device not in (None, "cpu"):
        import torch

        try:
            torch.empty(1, device=arguments.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"--device {arguments.device} cannot be used here: {reason}") from error
    if arguments.sheet and arguments.sheet.suffix.lower() not in Image.registered_extensions():
        raise ConfigError(f"--sheet {arguments.sheet}: give an image file, such as sheet.png")


def _images(
    scene: Scene, restore: Callable[[Pixels], Pixels] | None, multiple: int
) -> tuple[Pixels | None, Pixels, Pixels]:
    """Return (degraded, output, truth) of a scene, cropped. Raises DataError."""

    def cropped(path: Path) -> Pixels:
        try:
            return crop_to_multiple(read_rgb(path), multiple)
        except DataError as error:
            raise DataError(f"{scene.name}: {error}") from error

    degraded = None if scene.degraded is None else cropped(scene.degraded)
    if scene.output is not None:
        return degraded, cropped(scene.output), cropped(scene.truth)
    if restore is None or degraded is None:
        raise DataError(f"{scene.name} has no output: give `restore`, and a scene with a degraded image")
    return degraded, restore(degraded), cropped(scene.truth)


def _write(path: Path, image: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def _caption(score: Score, images: int) -> str:
    roles = "(input, output, truth)" if images == 3 else "(output, truth)"
    psnr = f", {score.values['psnr']:.1f} dB" if "psnr" in score.values else ""
    return f"{score.name}{psnr} {roles}"


def _best_device() -> str:
    try:
        import torch
    except ImportError:  # an error follows where it is needed
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(run_command(main))
