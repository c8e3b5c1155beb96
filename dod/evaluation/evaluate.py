"""The metrics of restored images and the tables of them: `python -m dod.evaluation.evaluate OUTPUTS TRUTHS`.

    python -m dod.evaluation.evaluate OUTPUTS TRUTHS --inputs DEGRADED --sheet sheet.png  # the outputs of any method
    python -m dod.evaluation.evaluate DEGRADED TRUTHS --checkpoint mini --save OUTPUTS    # restored here first
    python -m dod.evaluation.evaluate OUTPUTS TRUTHS --metrics psnr ssim lpips fid musiq  # pyiqa: extra eval-iqa

The folders hold images of the same names, in the same subfolders; extensions may differ. First-level subfolders are
tasks, and the last line is the mean of their means. What each metric is exactly stands in the JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from dod.data.images import crop_to_multiple, match, read_rgb, task_of
from dod.errors import ConfigError, DataError, run_command
from dod.evaluation.contact_sheet import Entry, contact_sheet
from dod.evaluation.metrics import CORE
from dod.evaluation.scorer import Scorer
from dod.evaluation.scores import Result, Score, as_json, markdown, text

__all__ = ["Evaluation", "Scene", "evaluate", "find_scenes"]

SHOWN = 3  # scenes of each task on the contact sheet

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """The files of one image. degraded: None where only the output is known; output: None where it is to be made."""

    name: str
    truth: Path
    output: Path | None = None
    degraded: Path | None = None


@dataclass(frozen=True)
class Evaluation:
    """What came of `evaluate`: the figures, what they are, and the first scenes of each task to look at."""

    result: Result
    settings: dict[str, dict[str, object]]
    shown: list[Entry]


def evaluate(
    scenes: Sequence[Scene],
    metrics: Sequence[str] = tuple(CORE),
    *,
    restore: Callable[[Pixels], Pixels] | None = None,
    multiple: int = 1,
    save: Path | None = None,
    device: str = "cpu",
    bar: bool = False,
) -> Evaluation:
    """Scores scenes, restoring them first where their output is to be made.

    restore: uint8 [H, W, 3] -> the same, for scenes without an output. multiple: all images are first centre-cropped
    to a multiple of so many pixels. save: a folder for what is restored. device: of pyiqa's metrics. bar: shows
    progress, on a terminal. Raises ConfigError for an unknown metric, DataError for images that cannot be compared
    and metrics that cannot be had.
    """
    shown: dict[str, list[Entry]] = {}
    with Scorer(metrics, device) as scorer:
        for scene in tqdm(scenes, "evaluating", unit="image", disable=None if bar else True):
            degraded, output, truth = _images(scene, restore, multiple)
            if save and scene.output is None:
                _write(save / f"{scene.name}.png", output)
            score = scorer.add(scene.name, output, truth)
            entries = shown.setdefault(task_of(scene.name), [])
            if len(entries) < SHOWN:
                there = [output, truth] if degraded is None else [degraded, output, truth]
                entries.append(Entry(_caption(score, len(there)), there))
        result = scorer.result()
        return Evaluation(result, scorer.settings, [entry for entries in shown.values() for entry in entries])


def find_scenes(folder: Path, truths: Path, inputs: Path | None = None, restored: bool = True) -> list[Scene]:
    """The scenes of the folders. restored: whether `folder` holds outputs, or inputs. Raises DataError."""
    degraded = match(inputs, truths) if inputs else {}
    found = match(folder, truths).items()
    if not restored:
        return [Scene(name, truth, degraded=path) for name, (path, truth) in found]
    return [Scene(name, truth, path, degraded[name][0] if inputs else None) for name, (path, truth) in found]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    _check(arguments)
    scenes = find_scenes(arguments.folder, arguments.truths, arguments.inputs, arguments.checkpoint is None)
    with_torch = arguments.checkpoint is not None or any(name not in CORE for name in arguments.metrics)
    device = arguments.device or (_best_device() if with_torch else "cpu")
    setting = {name: str(getattr(arguments, name)) for name in ("folder", "truths", "inputs", "checkpoint")}
    setting = {name: value for name, value in setting.items() if value != "None"}
    restore = None
    if arguments.checkpoint is not None:
        from dod.checkpoint import load_model  # here, because the outputs of other methods are measured without torch
        from dod.evaluation.restoration import restore_image

        model = load_model(arguments.checkpoint, arguments.base, arguments.ddpm).to(device)
        restore = partial(restore_image, model)
        setting |= {"preset": model.preset.name, "base_sha256": model.base_sha256}
    done = evaluate(
        scenes,
        arguments.metrics,
        restore=restore,
        multiple=arguments.crop_to_multiple,
        save=arguments.save,
        device=device,
        bar=True,
    )
    print(text(done.result))
    data = {**setting, "crop_to_multiple": arguments.crop_to_multiple, **as_json(done.result, done.settings)}
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dod.evaluation.evaluate", description=(__doc__ or "").split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, help="restored images; with --checkpoint, what it restores first")
    parser.add_argument("truths", type=Path, help="clean images, with the same names")
    parser.add_argument("--metrics", nargs="+", default=list(CORE), metavar="NAME", help="default: psnr ssim")
    parser.add_argument("--crop-to-multiple", type=int, default=1, metavar="N", help="centre-crop; 16 in most papers")
    parser.add_argument("--inputs", type=Path, metavar="FOLDER", help="what was restored, for the contact sheet")
    parser.add_argument("--checkpoint", help="restore with this preset or checkpoint folder, in PyTorch")
    parser.add_argument("--base", help="where its frozen weights lie, if not where the preset says")
    parser.add_argument("--ddpm", help="the same of its DDPM")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="keep what --checkpoint restores")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, and what they are, as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="draw a contact sheet: (input,) output, truth")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    """Raises ConfigError for options that contradict each other, before anything is read."""
    if arguments.crop_to_multiple < 1:
        raise ConfigError(f"--crop-to-multiple must be at least 1, not {arguments.crop_to_multiple}")
    if arguments.checkpoint is None:
        for name in ("base", "ddpm", "save"):
            if getattr(arguments, name) is not None:
                raise ConfigError(f"--{name} goes with --checkpoint: without it nothing is restored here")
    elif arguments.inputs:
        raise ConfigError(f"--inputs {arguments.inputs}: with --checkpoint the first folder already holds the inputs")
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
        raise ConfigError(f"--sheet {arguments.sheet}: name an image file, such as sheet.png")


def _images(
    scene: Scene, restore: Callable[[Pixels], Pixels] | None, multiple: int
) -> tuple[Pixels | None, Pixels, Pixels]:
    """(degraded, output, truth) of a scene, cropped. Raises DataError."""

    def cropped(path: Path) -> Pixels:
        try:
            return crop_to_multiple(read_rgb(path), multiple)
        except DataError as error:
            raise DataError(f"{scene.name}: {error}") from error

    degraded = None if scene.degraded is None else cropped(scene.degraded)
    if scene.output is not None:
        return degraded, cropped(scene.output), cropped(scene.truth)
    if restore is None or degraded is None:
        raise DataError(f"{scene.name} has no output, and no input or model to make one")
    return degraded, restore(degraded), cropped(scene.truth)


def _write(path: Path, image: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def _caption(score: Score, images: int) -> str:
    what = "(input, output, truth)" if images == 3 else "(output, truth)"
    figure = f", {score.values['psnr']:.1f} dB" if "psnr" in score.values else ""
    return f"{score.name}{figure} {what}"


def _best_device() -> str:
    try:
        import torch
    except ImportError:  # whoever needs it says so
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(run_command(main))
