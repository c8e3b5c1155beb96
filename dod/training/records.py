"""Records of training runs, which are kept beside the weights they made."""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .processes import say
from .state import WITHOUT_EFFECT, Log, Schedule, with_current_keys

__all__ = ["cost", "is_repeated", "log_excerpt", "training_record"]


def training_record(schedule: Schedule, log: Log, **options: object) -> dict[str, object]:
    """Return the record of a run.

    Args:
        schedule: schedule of the run.
        log: its log, of which an excerpt is kept.
        **options: its other options.

    Returns:
        JSON values.
    """
    return {"schedule": vars(schedule), "options": options, "log": log_excerpt(log)}


def log_excerpt(log: Log) -> Log:
    """Return about 20 entries of a log.

    Args:
        log: the log.

    Returns:
        Evenly spaced entries.
    """
    return log[:: max(1, len(log) // 20)]


def cost(log: Log) -> str:
    """Describe the cost of a run: median of the images per second, and peak memory of the process and the GPU.

    Args:
        log: log of the run.

    Returns:
        A phrase.
    """
    speeds = sorted(entry["images_per_second"] for entry in log)
    text = f"{speeds[len(speeds) // 2]:.1f} images/s, peak memory"
    text += f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB"
    if torch.cuda.is_available():
        text += f", on the GPU {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
    return text


def is_repeated(folder: Path, runs: Sequence[Mapping[str, Any]], run: Mapping[str, Any]) -> bool:
    """Return True, and print a note, if weights were already made by a run.

    The last recorded run then has the same options: the same command was given twice. Further training needs other
    samples, and so another seed.

    Args:
        folder: folder of the weights, for the note.
        runs: recorded runs of the weights.
        run: record of the new run.

    Returns:
        True if there is nothing to do.
    """
    repeated = bool(runs) and _decisive(runs[-1]) == _decisive(run)
    if repeated:
        say(f"{folder} was already written by this run: give another --seed to train it further")
    return repeated


def _decisive(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a recorded run that determine its result, as JSON values with their current keys."""
    run = with_current_keys(json.loads(json.dumps(run)))
    schedule = {key: value for key, value in run.get("schedule", {}).items() if key not in WITHOUT_EFFECT}
    return {**run, "schedule": schedule, "log": None}
