"""Where a training command writes, and what it never replaces unasked: see `RULE` in `arguments`."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..checkpoint import METADATA, WEIGHTS, read_metadata
from ..config import PRESETS, Preset, preset_file
from ..errors import ConfigError
from ..model.base import PROMPT_FILE
from .arguments import COPIES, STATES, preset_from
from .loop import is_main_process, process, say
from .state import WITHOUT_EFFECT

FILE = "preset.yaml"
BASE_FILES = ("vae", "unet", "scheduler", "tokenizer", "text_encoder", PROMPT_FILE)
"""Everything that is read from a base."""


def training_preset(arguments: Namespace) -> Preset:
    """Return the preset that a command trains: that of its working folder or, until there is one, the named preset.

    Args:
        arguments: Of a parser with `add_output`.

    Raises:
        ConfigError: There is no such preset, or `--out` is a folder of something else.
    """
    named = preset_from(arguments)
    folder = working_folder(arguments, named)
    if _same_folder(folder, named.folder):
        return named
    if not (folder / FILE).is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} exists and holds no {FILE}: give --out a new folder, or a preset's")
        return named
    preset = preset_from(Namespace(**{**vars(arguments), "preset": folder}))
    if preset.name != named.name:
        raise ConfigError(f"{folder} holds preset {preset.name}, not {named.name}: give --out another folder")
    return preset


def working_folder(arguments: Namespace, named: Preset) -> Path:
    """Return the folder that a command writes to. ConfigError where `--out` is among the shipped presets."""
    shipped = PRESETS.resolve()
    if arguments.out is None:
        return COPIES / named.folder.resolve().name if named.folder.resolve().parent == shipped else named.folder
    if shipped in (arguments.out.resolve(), *arguments.out.resolve().parents):
        raise ConfigError(f"--out {arguments.out} is among the shipped presets, whose weights are kept: give another")
    return arguments.out


def state_folder(arguments: Namespace) -> Path:
    """Return `--state`, or the default, which no other preset's runs share."""
    if arguments.state is not None:
        return arguments.state
    named, file = preset_from(arguments), preset_file(arguments.preset)
    folder = working_folder(arguments, named)
    in_place = _same_folder(folder, named.folder)
    return STATES / (file.stem if in_place and file.name != FILE else folder.resolve().name)


def part_path(preset: Preset, part: str) -> Path:
    """Return the folder that a preset names for its "vae", "unet", "ddpm" or "checkpoint"."""
    if part == "checkpoint":
        return preset.folder / str(preset.checkpoint)
    return preset.folder / preset.ddpm.source if part == "ddpm" else preset.folder / preset.base.source / part


def check_output(arguments: Namespace, preset: Preset, writes: Mapping[str, bool]) -> None:
    """Refuse to replace weights that a command does not start from, before anything is loaded.

    A copy's weights that are still those of the preset it was made of are free to be replaced: nothing is lost.

    Args:
        arguments: Of a parser with `add_output`.
        preset: What `training_preset` returned.
        writes: The parts that the command writes (see `part_path`), and whether its training starts from them.

    Raises:
        ConfigError: A part would be lost without `--overwrite`, or lies outside of the copy that is trained.
    """
    named = preset_from(arguments)
    folder = working_folder(arguments, named)
    in_place = _same_folder(folder, named.folder)
    for part, starts_from_it in writes.items():
        path, original = part_path(preset, part), part_path(named, part)
        key, source = ("ddpm", preset.ddpm.source) if part == "ddpm" else ("base", preset.base.source)
        if part != "checkpoint" and not in_place and not _inside(source):
            raise ConfigError(
                f"{key}.source = {source} lies outside of {folder}, and this command writes its {part}: "
                f"copy it into a preset of your own, and train that without --out"
            )
        if starts_from_it or arguments.overwrite or not _same_folder(preset.folder, folder):
            continue
        if (files := _files(path, part)) and (in_place or not _identical(files, _files(original, part))):
            further = "--continue to train them further, " if hasattr(arguments, "go_on") else ""
            raise ConfigError(
                f"{path} holds weights that this command would replace: give {further}--overwrite to replace them, or "
                "--out FOLDER to leave them as they are"
            )


def open_output(arguments: Namespace, preset: Preset, writes: Mapping[str, bool]) -> Preset:
    """Return the preset in the folder that the command writes to, which is made where there is none.

    Arguments and errors are those of `check_output`.
    """
    check_output(arguments, preset, writes)
    named = preset_from(arguments)
    folder = working_folder(arguments, named)
    if _same_folder(folder, named.folder):
        return preset
    if is_main_process() and not (folder / FILE).is_file():
        _copy(named, preset_file(arguments.preset), folder)
    process().wait_for_everyone()
    say(f"preset {named.name} is trained in {folder}, a copy; {named.folder} stays as it is")
    return training_preset(arguments)


def was_fitted(preset: Preset, part: str) -> bool:
    """Whether the preset's checkpoint records a run that fitted this part, such as "postprocess". CheckpointError."""
    training = read_metadata(part_path(preset, "checkpoint")).get("training", [])
    return any(run.get("stage") == part for run in training)


def is_repeated(where: Path, runs: Sequence[Mapping[str, Any]], run: Mapping[str, Any]) -> bool:
    """Whether the last run that weights record is this one: the same command, given a second time. Says so.

    To train further takes other samples, so another seed.
    """
    repeated = bool(runs) and _decisive(runs[-1]) == _decisive(run)
    if repeated:
        say(f"{where} was written by this very run, nothing is done: give another --seed to train it further")
    return repeated


def _decisive(run: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a recorded run, as JSON gives it back."""
    schedule = {key: value for key, value in run.get("schedule", {}).items() if key not in WITHOUT_EFFECT}
    return json.loads(json.dumps({**run, "schedule": schedule, "log": None}))


def _copy(preset: Preset, file: Path, folder: Path) -> None:
    """Make a folder of a preset and the weights beside it, all or nothing. Weights elsewhere are named, not copied."""
    values = original = yaml.safe_load(file.read_text()) or {}
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for key, source in (("base", preset.base.source), ("ddpm", preset.ddpm.source)):
            beside = preset.folder / source
            if source == "random" or not beside.exists():
                continue
            if not _inside(source):
                values = {**values, key: {**values[key], "source": str(beside.resolve())}}
                continue
            for name in BASE_FILES if key == "base" and beside.is_dir() else ("",):
                _copy_files(beside / name, temporary / source / name)
        if preset.checkpoint is not None:
            if not _inside(preset.checkpoint):
                values = {**values, "checkpoint": (preset.folder / preset.checkpoint).resolve().name}
            for path in _files(part_path(preset, "checkpoint"), "checkpoint").values():
                _copy_files(path, temporary / values["checkpoint"] / path.name)
        text = file.read_text() if values is original else yaml.safe_dump(values, sort_keys=False)
        (temporary / FILE).write_text(text)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy_files(source: Path, target: Path) -> None:
    """Copy a file or a folder's files with the permissions of new ones, wherever an installation keeps its own."""
    for name, path in _files(source).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)


def _files(path: Path, part: str = "") -> dict[str, Path]:
    """The files of a part by their name in it; of a checkpoint's folder its own two."""
    if path.is_file():
        return {"": path}
    names = (WEIGHTS, METADATA) if part == "checkpoint" else ("**/*",)
    found = (each for name in names for each in path.glob(name))
    return {str(each.relative_to(path)): each for each in found if each.is_file()}


def _identical(files: Mapping[str, Path], others: Mapping[str, Path]) -> bool:
    return files.keys() == others.keys() and all(
        filecmp.cmp(files[name], others[name], shallow=False) for name in files
    )


def _inside(source: str) -> bool:
    """Whether a source is a name below the preset's folder."""
    return not Path(source).is_absolute() and Path(os.path.normpath(source)).parts[:1] != ("..",)


def _same_folder(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
