"""The command line that the training commands share."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..config import Preset, load_preset
from ..data.dataset import PhotographCrops
from ..data.pairs import PairedCrops
from ..data.trees import SETTINGS
from ..errors import ConfigError
from .loop import PRECISIONS, say
from .state import Schedule

Samples = PhotographCrops | PairedCrops

COPIES = Path("build/presets")
"""Where copies of shipped presets are trained."""
STATES = Path("build/training")
"""Where interrupted runs are kept."""
RULE = (
    "Trained weights go into the preset's folder. With --out, and always for a shipped preset, they go into a copy: "
    "the first command copies the preset and the weights beside it, later commands continue in the copy. Weights in "
    "the folder are replaced without --overwrite only by training that starts from them (--continue, stage 2)."
)

BESIDE = (
    ("photographs", "recoloured", 0.0),
    ("photographs", "misty", 0.0),
    ("photographs", "windows", 2),
    ("photographs", "more", []),
    ("photographs", "soft", 0.0),
    ("data", "lists", None),
    ("data", "skip_broken", False),
)
"""Options that go with one source of samples alone: the source, the option, its default."""


def training_parser(
    prog: str,
    description: str,
    commands: dict[str, dict[str, Any]],
    without: Mapping[str, Container[str]] = MappingProxyType({}),
) -> ArgumentParser:
    """What the training commands share: `command`, images, preset, state, and an option for each field of `Schedule`.

    commands: the defaults of each command where they are not those of `Schedule`, and of its further options; a tuple
    holds the choices, the default first, a list the defaults of an option with several numbers. without: the shared
    options that a command does not take.
    """
    parser = ArgumentParser(prog=prog, description=description)
    parsers = parser.add_subparsers(dest="command", required=True)
    for name, defaults in commands.items():
        command = parsers.add_parser(name)
        add_source(command)
        command.add_argument("--preset", default="mini", help="name, folder or file; default mini")
        left_out = without.get(name, ())
        add_output(command)
        if "state" not in left_out:
            command.add_argument(
                "--state", type=Path, help=f"folder that an interrupted run resumes from (default: {STATES}/PRESET)"
            )
        if "continue" not in left_out:
            command.add_argument(
                "--continue", dest="go_on", action="store_true", help="start from the weights that the preset names"
            )
        for field, value in {**asdict(Schedule()), **defaults}.items():
            if field in left_out:
                continue
            choices = list(PRECISIONS) if field == "precision" else None
            if isinstance(value, tuple):
                choices, value = list(value), value[0]
            option = f"--{field.replace('_', '-')}"
            if isinstance(value, bool):
                command.add_argument(option, action="store_true", help="default off")
                continue
            if isinstance(value, list):
                command.add_argument(option, type=int, nargs="+", default=value, help=f"default {value or 'none'}")
                continue
            command.add_argument(option, type=type(value), default=value, choices=choices, help=f"default {value}")
    return parser


def add_output(command: ArgumentParser) -> None:
    """Add the options that say where weights go: see `RULE` and `dod.training.output`."""
    output = command.add_argument_group("output", RULE)
    output.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help=f"copy of the preset to train, made if missing (default: the preset itself; a shipped one: {COPIES}/NAME)",
    )
    output.add_argument(
        "--overwrite", action="store_true", help="replace weights that training does not start from (default: stop)"
    )


def add_source(command: ArgumentParser) -> None:
    """The options that say what is trained on: see `samples_from`."""
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--photographs", type=Path, help="folder of clean photographs, degraded synthetically")
    source.add_argument("--data", type=Path, help="a published tree of image pairs: see dod/data/trees.py")
    command.add_argument(
        "--recoloured", type=float, default=0.0, help="share of the photographs' crops in other colours; default 0"
    )
    command.add_argument(
        "--misty", type=float, default=0.0, help="share of them in a mist that is to stay there; default 0"
    )
    command.add_argument(
        "--windows", type=int, default=2, help="of so many windows of a photograph the most detailed; default 2"
    )
    command.add_argument(
        "--more", nargs="+", default=[], help="degradations of the photographs that come once more as often, each time"
    )
    command.add_argument(
        "--soft",
        type=float,
        default=0.0,
        help="share of the photographs' crops that are resized, blurred, noisy or JPEG-compressed (default: 0)",
    )
    command.add_argument("--setting", choices=list(SETTINGS), help="the degradations (default: the preset's)")
    command.add_argument("--lists", type=Path, help="with --data: folder of list files, as PromptIR's data_dir")
    command.add_argument("--skip-broken", action="store_true", help="with --data: leave out unreadable images")


def preset_from(arguments: Namespace, keys: dict[str, Any] | None = None) -> Preset:
    """The preset, with the conditions of --setting where it is given. keys: overrides, see `load_preset`."""
    preset, setting = load_preset(arguments.preset, keys), getattr(arguments, "setting", None)
    return preset if setting is None else replace(preset, conditions=SETTINGS[setting])


def samples_from(
    arguments: Namespace, schedule: Schedule, degradations: Sequence[str], clean_fraction: float
) -> Samples:
    """The training samples: a share that is left clean, the rest with the degradations named.

    Raises DataError, and ConfigError for an option of the other source.
    """
    crop, seed = schedule.crop, schedule.seed
    for source, name, default in BESIDE:
        if getattr(arguments, source) is None and getattr(arguments, name) != default:
            raise ConfigError(f"--{name.replace('_', '-')} goes with --{source}")
    if arguments.data is None:
        shown = degradations if clean_fraction < 1 else ()
        more = arguments.more if len(shown) > 1 else ()  # one by itself is all there is, as in calibration
        drawing = {"recoloured": arguments.recoloured, "misty": arguments.misty}
        drawing |= {"windows": arguments.windows, "more": more, "soft": arguments.soft}
        return PhotographCrops(arguments.photographs, crop, seed, shown, clean_fraction, **drawing)
    lists, skip = arguments.lists, arguments.skip_broken
    pairs = PairedCrops(arguments.data, crop, seed, degradations, clean_fraction, lists=lists, skip_broken=skip)
    if pairs.skipped:
        say(f"{len(pairs.skipped)} unreadable images are left out, first {pairs.skipped[0]}")
    return pairs


def schedule_from(arguments: Namespace) -> Schedule:
    """The schedule that the arguments of a `training_parser` describe."""
    return Schedule(**{name: value for name, value in vars(arguments).items() if name in asdict(Schedule())})
