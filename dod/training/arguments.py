"""Command-line options that the training commands share, and what they describe: preset, samples, schedule."""

from __future__ import annotations

import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dod_runtime.console import Parser
from dod_runtime.errors import unknown

from ..config import Preset, load_preset
from ..data.dataset import PhotographCrops
from ..data.pairs import PairedCrops
from ..data.trees import SETTINGS
from ..errors import ConfigError
from .processes import say
from .schedule_arguments import add_schedule
from .state import Schedule

__all__ = [
    "COPIES",
    "STATES",
    "Samples",
    "add_checkpoint",
    "add_output",
    "add_source",
    "command_name",
    "preset_from",
    "samples_from",
    "training_parser",
]

Samples = PhotographCrops | PairedCrops
"""Data sets that training uses."""

COPIES = Path("build/presets")
"""Folder of the copies of shipped presets that are trained."""
STATES = Path("build/training")
"""Folder of the states of interrupted runs."""
WRITES = "Weights are written to the preset's folder."
OUTPUT_RULE = (
    "With --out, and always for a shipped preset, a copy is written instead: the first command copies the preset and "
    "its weights, later commands continue in the copy."
)
REPLACES = (
    "Existing weights are replaced only by training that starts from them (--continue, stage2), or with --overwrite."
)
SOURCE_OPTIONS: tuple[tuple[str, str, Any], ...] = (
    ("photographs", "color_jitter", 0.0),
    ("photographs", "mist", 0.0),
    ("photographs", "crop_candidates", 2),
    ("photographs", "oversample", []),
    ("photographs", "soft", 0.0),
    ("data", "lists", None),
    ("data", "skip_broken", False),
)
"""(source, option, default) of options that apply to one source of samples only."""


def command_name(argv: Sequence[str] | None, prog: str, names: Collection[str]) -> tuple[str, list[str]]:
    """Split the name of a command from its arguments, for a module that has several.

    Args:
        argv: name and arguments, by default those of the process.
        prog: the program, for help and errors.
        names: valid names.

    Returns:
        The name, and the other arguments.

    Raises:
        UsageError: the name is missing or unknown.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in names:
        return words[0], words[1:]
    if not words or words[0].startswith("-"):
        parser = Parser(prog=prog, usage=f"{prog} {{{','.join(names)}}} ...")
        parser.parse_args(words)
        parser.error(f"name one of {', '.join(names)}")
    raise unknown("command", words[0], names)


def training_parser(command: str, description: str, defaults: Schedule, continues: bool = True) -> Parser:
    """Return a parser with the options of a training command.

    Args:
        command: subcommand of `dod-train`.
        description: one sentence for its help.
        defaults: default schedule.
        continues: add `--continue`.

    Returns:
        The parser, to which further groups may be added.
    """
    parser = Parser(prog=f"dod-train {command}", description=description)
    add_source(parser)
    group = add_checkpoint(parser)
    if continues:
        group.add_argument(
            "--continue",
            dest="continue_training",
            action="store_true",
            help="start a new run from the weights in the preset's folder; an interrupted run resumes from --state "
            "without it (default: start from new weights)",
        )
    group.add_argument(
        "--state",
        type=Path,
        metavar="FOLDER",
        help="folder where a run saves its state; the same command resumes an interrupted run from there "
        f"(default: {STATES}/PRESET)",
    )
    add_output(parser)
    add_schedule(parser, defaults)
    return parser


def add_checkpoint(parser: ArgumentParser, role: str = "preset to train") -> Any:
    """Add `--checkpoint` in a group of its own.

    Args:
        parser: parser of a command.
        role: what the command does with the preset, for its help.

    Returns:
        The group.
    """
    group = parser.add_argument_group("model")
    group.add_argument(
        "--checkpoint",
        default="mini",
        metavar="PRESET",
        help=f"{role}: name, folder or preset.yaml (default: %(default)s)",
    )
    return group


def add_output(parser: ArgumentParser, writes: str = WRITES, replaces: str = REPLACES, overwrites: bool = True) -> None:
    """Add the options that decide where weights are written; see `dod.training.output`.

    Args:
        parser: parser of a command.
        writes: sentence on what the command writes, for its help.
        replaces: sentence on what it replaces, for its help.
        overwrites: show `--overwrite`, which has no effect on a command that starts from the weights it replaces.
    """
    output = parser.add_argument_group("output", " ".join(filter(None, (writes, OUTPUT_RULE, replaces))))
    output.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="folder of the copy that is written instead of the preset "
        f"(default: the preset itself; {COPIES}/NAME for a shipped one)",
    )
    output.add_argument(
        "--overwrite",
        action="store_true",
        help="replace existing weights that would otherwise stay (default: stop with an error)"
        if overwrites
        else SUPPRESS,
    )


def add_source(parser: ArgumentParser) -> None:
    """Add the options that describe the training samples; see `samples_from`.

    Args:
        parser: parser of a command.
    """
    group = parser.add_argument_group("training data", "Give either --photographs or --data.")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--photographs",
        type=Path,
        metavar="FOLDER",
        help="folder of clean photographs; where degraded images are needed, they are made from these",
    )
    source.add_argument(
        "--data", type=Path, metavar="FOLDER", help="data set tree of image pairs in the layout of PromptIR or AdaIR"
    )
    group.add_argument(
        "--setting",
        choices=list(SETTINGS),
        help="degradations to train on (default: the conditions of the preset)",
    )
    synthetic = parser.add_argument_group("photographs", "Options of --photographs.")
    synthetic.add_argument(
        "--color-jitter",
        type=float,
        default=0.0,
        metavar="FRACTION",
        help="fraction of crops, input and target, with permuted channels and changed white balance and saturation, 0 "
        "to 1 (default: %(default)s)",
    )
    synthetic.add_argument(
        "--mist",
        type=float,
        default=0.0,
        metavar="FRACTION",
        help="fraction of crops with synthetic mist in the distance of input and target, which the restoration must "
        "preserve, 0 to 1 (default: %(default)s)",
    )
    synthetic.add_argument(
        "--crop-candidates",
        type=int,
        default=2,
        metavar="N",
        help="number of windows of a photograph from which the most detailed is taken (default: %(default)s)",
    )
    synthetic.add_argument(
        "--oversample",
        nargs="+",
        default=[],
        metavar="NAME",
        help="degradations to draw more often: once more for each time they are listed (default: none)",
    )
    synthetic.add_argument(
        "--soft",
        type=float,
        default=0.0,
        metavar="FRACTION",
        help="fraction of crops with simulated camera softness, 0 to 1: input and target are resized and blurred, and "
        "the input also gets sensor noise and JPEG compression, each at random; the target stays soft "
        "(default: %(default)s)",
    )
    tree = parser.add_argument_group("image pairs", "Options of --data.")
    tree.add_argument(
        "--lists",
        type=Path,
        metavar="FOLDER",
        help="folder of list files like PromptIR's data_dir (default: use every image)",
    )
    tree.add_argument(
        "--skip-broken", action="store_true", help="leave out unreadable images (default: stop with an error)"
    )


def preset_from(arguments: Namespace, keys: dict[str, Any] | None = None) -> Preset:
    """Load the preset that the arguments name, with the conditions of `--setting` if it is given.

    Args:
        arguments: arguments with `checkpoint`, and optionally `setting`.
        keys: overrides; see `load_preset`.

    Returns:
        The preset.

    Raises:
        ConfigError: there is no such preset, or it is malformed.
    """
    preset, setting = load_preset(arguments.checkpoint, keys), getattr(arguments, "setting", None)
    return preset if setting is None else replace(preset, conditions=SETTINGS[setting])


def samples_from(
    arguments: Namespace, schedule: Schedule, degradations: Sequence[str], clean_fraction: float
) -> Samples:
    """Open the training samples.

    Args:
        arguments: arguments of a parser with `add_source`.
        schedule: its `crop` and `seed` are used.
        degradations: degradations of the samples.
        clean_fraction: fraction of samples that are not degraded.

    Returns:
        The data set.

    Raises:
        ConfigError: an option applies to the other source of samples.
        DataError: images are missing or unusable.
    """
    crop, seed = schedule.crop, schedule.seed
    for source, name, default in SOURCE_OPTIONS:
        if getattr(arguments, source) is None and getattr(arguments, name) != default:
            raise ConfigError(f"--{name.replace('_', '-')} applies to --{source} only: remove it or give --{source}")
    if arguments.data is None:
        drawn = degradations if clean_fraction < 1 else ()
        return PhotographCrops(
            arguments.photographs,
            crop,
            seed,
            drawn,
            clean_fraction,
            color_jitter=arguments.color_jitter,
            mist=arguments.mist,
            crop_candidates=arguments.crop_candidates,
            oversample=arguments.oversample if len(drawn) > 1 else (),  # without effect on a single one (calibration)
            soft=arguments.soft,
        )
    lists, skip = arguments.lists, arguments.skip_broken
    pairs = PairedCrops(arguments.data, crop, seed, degradations, clean_fraction, lists=lists, skip_broken=skip)
    if pairs.skipped:
        say(f"{len(pairs.skipped)} unreadable images are left out, first {pairs.skipped[0]}")
    return pairs
