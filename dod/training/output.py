"""Folders that training commands write to, and the weights they never replace without `--overwrite`.

The rule is in `arguments.add_output`, whose text the commands' help shows.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import yaml

from ..checkpoint import METADATA, WEIGHTS, read_metadata
from ..config import PRESETS, Preset, preset_file
from ..errors import ConfigError
from ..model.base import PROMPT_FILE
from .arguments import COPIES, STATES, preset_from
from .processes import is_main_process, process, say

__all__ = [
    "check_output",
    "open_output",
    "part_path",
    "state_folder",
    "training_preset",
    "was_fitted",
    "working_folder",
]

FILE = "preset.yaml"
"""File of a preset in its folder."""
BASE_FILES = ("vae", "unet", "scheduler", "tokenizer", "text_encoder", PROMPT_FILE)
"""Names of everything that is read from a base."""


def training_preset(arguments: Namespace) -> Preset:
    """Return the preset that a command trains: that of its working folder if it exists, otherwise the named preset.

    Args:
        arguments: arguments of a parser with `add_checkpoint` and `add_output`.

    Returns:
        The preset.

    Raises:
        ConfigError: there is no such preset, or `--out` is a folder of something else.
    """
    named = preset_from(arguments)
    folder = working_folder(arguments, named)
    if _same_folder(folder, named.folder):
        return named
    if not (folder / FILE).is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"--out {folder} exists and has no {FILE}: give a new folder, or that of a preset")
        return named
    preset = preset_from(Namespace(**{**vars(arguments), "checkpoint": folder}))
    if preset.name != named.name:
        raise ConfigError(f"--out {folder} holds preset {preset.name}, not {named.name}: give another folder")
    return preset


def working_folder(arguments: Namespace, named: Preset) -> Path:
    """Return the folder that a command writes to.

    Args:
        arguments: arguments of a parser with `add_output`.
        named: the preset that the arguments name.

    Returns:
        `--out`, the folder of a shipped preset's copy, or the preset's own folder.

    Raises:
        ConfigError: `--out` is among the shipped presets.
    """
    shipped = PRESETS.resolve()
    if arguments.out is None:
        return COPIES / named.folder.resolve().name if named.folder.resolve().parent == shipped else named.folder
    if shipped in (arguments.out.resolve(), *arguments.out.resolve().parents):
        raise ConfigError(
            f"--out {arguments.out} is among the shipped presets, which never change: give another folder"
        )
    return arguments.out


def state_folder(arguments: Namespace) -> Path:
    """Return the folder of a run's state.

    Args:
        arguments: arguments of a training command.

    Returns:
        `--state`, or a default folder that no other preset's runs share.
    """
    if arguments.state is not None:
        return arguments.state
    named, file = preset_from(arguments), preset_file(arguments.checkpoint)
    folder = working_folder(arguments, named)
    in_place = _same_folder(folder, named.folder)
    return STATES / (file.stem if in_place and file.name != FILE else folder.resolve().name)


def part_path(preset: Preset, part: str) -> Path:
    """Return the folder of a part of a preset.

    Args:
        preset: the preset.
        part: "vae", "unet", "ddpm" or "checkpoint".

    Returns:
        The folder.
    """
    if part == "checkpoint":
        return preset.folder / str(preset.checkpoint)
    return preset.folder / preset.ddpm.source if part == "ddpm" else preset.folder / preset.base.source / part


def check_output(arguments: Namespace, preset: Preset, writes: Mapping[str, bool]) -> None:
    """Refuse to replace weights that a command does not start from, before anything is loaded.

    Weights of a copy that still equal those of the original preset may be replaced: nothing is lost.

    Args:
        arguments: arguments of a parser with `add_checkpoint` and `add_output`.
        preset: preset that `training_preset` returned.
        writes: parts that the command writes (see `part_path`), and whether its training starts from them.

    Raises:
        ConfigError: a part would be lost without `--overwrite`, or lies outside the copy that is trained.
    """
    named = preset_from(arguments)
    folder = working_folder(arguments, named)
    in_place = _same_folder(folder, named.folder)
    for part, starts_from_it in writes.items():
        path, original = part_path(preset, part), part_path(named, part)
        key, source = ("ddpm", preset.ddpm.source) if part == "ddpm" else ("base", preset.base.source)
        if part != "checkpoint" and not in_place and not _inside(source):
            raise ConfigError(
                f"{key}.source = {source} is outside {folder}, and this command writes its {part}: copy it to a "
                "preset of your own, and train that without --out"
            )
        if starts_from_it or arguments.overwrite or not _same_folder(preset.folder, folder):
            continue
        if (files := _files(path, part)) and (in_place or not _identical(files, _files(original, part))):
            further = "--continue to train them further, " if hasattr(arguments, "continue_training") else ""
            raise ConfigError(
                f"{path} has weights that this command would replace: give {further}--overwrite to replace them, or "
                "--out FOLDER to keep them"
            )


def open_output(arguments: Namespace, preset: Preset, writes: Mapping[str, bool]) -> Preset:
    """Return the preset in the folder that a command writes to; a copy is made if it does not exist.

    Args:
        arguments: arguments of a parser with `add_checkpoint` and `add_output`.
        preset: preset that `training_preset` returned.
        writes: see `check_output`.

    Returns:
        The preset to train.

    Raises:
        ConfigError: see `check_output`.
    """
    check_output(arguments, preset, writes)
    named = preset_from(arguments)
    folder = working_folder(arguments, named)
    if _same_folder(folder, named.folder):
        return preset
    if is_main_process() and not (folder / FILE).is_file():
        _copy(named, preset_file(arguments.checkpoint), folder)
    process().wait_for_everyone()
    say(f"preset {named.name} is trained in a copy, {folder}; {named.folder} does not change")
    return training_preset(arguments)


def was_fitted(preset: Preset, part: str) -> bool:
    """Return True if the preset's checkpoint records a run that fitted a part.

    Args:
        preset: the preset.
        part: name of the part, such as "postprocess".

    Returns:
        True if its training record has such a run.

    Raises:
        CheckpointError: there is no readable checkpoint.
    """
    training = read_metadata(part_path(preset, "checkpoint")).get("training", [])
    return any(run.get("stage") == part for run in training)


def _copy(preset: Preset, file: Path, folder: Path) -> None:
    """Copy a preset and the weights in its folder, completely or not at all. Weights elsewhere are named by path."""
    values = original = yaml.safe_load(file.read_text()) or {}
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for key, source in (("base", preset.base.source), ("ddpm", preset.ddpm.source)):
            path = preset.folder / source
            if source == "random" or not path.exists():
                continue
            if not _inside(source):
                values = {**values, key: {**values[key], "source": str(path.resolve())}}
                continue
            for name in BASE_FILES if key == "base" and path.is_dir() else ("",):
                _copy_files(path / name, temporary / source / name)
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
    """Copy a file or a folder's files with the permissions of new files: those of an installation may be read-only."""
    for name, path in _files(source).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)


def _files(path: Path, part: str = "") -> dict[str, Path]:
    """Return the files of a part by their name in it; for a checkpoint's folder its own two files only."""
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
    """Return True if a source is a path below the preset's folder."""
    return not Path(source).is_absolute() and Path(os.path.normpath(source)).parts[:1] != ("..",)


def _same_folder(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
