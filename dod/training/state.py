"""Schedule of a run, and its state: parameters, moments, step and log in one file, from which the run resumes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import nn
from torch.optim import AdamW

from ..errors import ConfigError, TrainingError
from ..tensors import read_safetensors, write_safetensors

__all__ = ["START", "WITHOUT_EFFECT", "Log", "Resumed", "Schedule", "resume", "save", "with_current_keys"]

WITHOUT_EFFECT = ("workers", "save_every")
"""Options that do not change the result of a run."""
MAY_CHANGE = ("learning_rate", *WITHOUT_EFFECT)
"""Options that may change when a run is resumed: a lower learning rate helps a diverging run."""

START = "initial weights"
"""Key of the fingerprint of the parameters before the first step."""
FORMER_KEYS = {
    "batch": "batch_size",
    "recoloured": "color_jitter",
    "misty": "mist",
    "windows": "crop_candidates",
    "more": "oversample",
    "tile": "tile_size",
    "gate_rate": "w_lr_multiplier",
    "gate_start": "w_start",
    "decoder_rate": "decoder_lr_multiplier",
    "pictures_per_second": "images_per_second",
    "the weights it started from": START,
}
"""Former keys of records and states, and the keys that replaced them."""

Log = list[dict[str, float]]
"""Entries of a run's log: step, loss, images per second and loss terms by name."""


@dataclass(frozen=True)
class Schedule:
    """Length, learning rate and precision of a run.

    Attributes:
        steps: number of optimizer steps.
        batch_size: samples per batch and process.
        crop: side of the training crops in px.
        learning_rate: peak learning rate of AdamW.
        warmup: steps of linear warm-up.
        weight_decay: weight decay of AdamW.
        clip: maximum gradient norm of each parameter group.
        seed: seed of samples, noise and initial weights.
        workers: worker processes that load samples; 0 loads them in the main process.
        save_every: steps between two saves of the state.
        accumulation: batches per step.
        precision: "fp32", "bf16" or "fp16" of the networks. On a CPU bf16 is slower than fp32 with few channels.

    Raises:
        ConfigError: a number is out of range.
    """

    steps: int = 1000
    batch_size: int = 8
    crop: int = 128
    learning_rate: float = 5e-5
    warmup: int = 50
    weight_decay: float = 1e-2
    clip: float = 1.0
    seed: int = 0
    workers: int = 1
    save_every: int = 200
    accumulation: int = 1
    precision: str = "fp32"

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch_size": 1, "crop": 1, "save_every": 1, "accumulation": 1}
        for key in ("workers", "warmup", "weight_decay", "seed"):
            least[key] = 0
        for key, value in least.items():
            if getattr(self, key) < value:
                raise ConfigError(f"--{key.replace('_', '-')} {getattr(self, key)}: it must be at least {value}")
        for key in ("learning_rate", "clip"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"--{key.replace('_', '-')} {getattr(self, key)}: it must be above 0")

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate at a step: linear warm-up, then cosine decay to 2 % of the peak.

        Args:
            step: index of the step.

        Returns:
            The learning rate.
        """
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def save(
    file: Path, parameters: dict[str, nn.Parameter], optimizer: AdamW, scaler: Any, state: dict[str, object]
) -> None:
    """Write the state of a run. The file is replaced only when its successor is complete.

    Args:
        file: the safetensors file.
        parameters: trained parameters by name.
        optimizer: AdamW over them.
        scaler: loss scaler of fp16 training, or None.
        state: further JSON values: step, run and log.
    """
    tensors = {f"parameter.{key}": p.detach() for key, p in parameters.items()}
    for key, p in parameters.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            if p in optimizer.state:
                tensors[f"{moment}.{key}"] = optimizer.state[p][moment]
    temporary = file.with_name(f".{file.name}")
    try:
        state = {**state, "scaler": scaler.state_dict() if scaler else None}
        metadata = {key: json.dumps(value) for key, value in state.items()}
        write_safetensors({k: t.contiguous() for k, t in tensors.items()}, temporary, metadata)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def with_current_keys(record: Any) -> Any:
    """Replace former keys (`FORMER_KEYS`) in a record or state of an older version.

    Args:
        record: JSON values.

    Returns:
        A copy.
    """
    if isinstance(record, dict):
        return {FORMER_KEYS.get(key, key): with_current_keys(value) for key, value in record.items()}
    return [with_current_keys(value) for value in record] if isinstance(record, list) else record


class Resumed(NamedTuple):
    """Starting point of a run.

    Attributes:
        step: next step.
        log: log up to that step.
        scaler: state of the loss scaler, or None.
        note: reason why a state that was found is not used, or None.
    """

    step: int
    log: Log
    scaler: Any
    note: str | None = None


def resume(
    file: Path,
    parameters: dict[str, nn.Parameter],
    optimizer: AdamW,
    run: Mapping[str, object],
) -> Resumed:
    """Load the state of a run into its parameters and optimizer.

    The state of another run is refused while that run is unfinished. If it is finished, nothing can be lost: this run
    starts at step 0, and its state replaces the other.

    Args:
        file: the state, as `save` wrote it.
        parameters: trained parameters by name, updated in place.
        optimizer: AdamW over them, whose moments are set.
        run: everything that determines the run, by key: schedule, samples, dependencies and `START`.

    Returns:
        The starting point.

    Raises:
        CheckpointError: the file is malformed.
        TrainingError: the file is the state of another, unfinished run; the message has the first key that differs.
    """
    tensors = read_safetensors(file)
    with safe_open(file, "pt") as opened:
        state = with_current_keys({key: json.loads(value) for key, value in (opened.metadata() or {}).items()})
    found, wanted = state.get("run", {}), json.loads(json.dumps(run))
    stored = {key.removeprefix("parameter."): t.shape for key, t in tensors.items() if key.startswith("parameter.")}
    finished = state["step"] >= found.get("steps", math.inf)
    difference = _difference(found, wanted, {START, *(WITHOUT_EFFECT if finished else MAY_CHANGE)})
    if stored != {key: p.shape for key, p in parameters.items()} and not difference:
        difference = "holds other parameters than this model"
    difference = difference or _difference(found, wanted, set(wanted) - {START})
    if difference and finished:
        return Resumed(0, [], None, f"{file} {difference}; that run is finished, so this one starts at step 0")
    if difference:
        raise TrainingError(
            f"{file} {difference}: give the same checkpoint and options, or another --state, or remove the file to "
            "start at step 0"
        )
    with torch.no_grad():
        for key, p in parameters.items():
            p.copy_(tensors[f"parameter.{key}"])
            if f"exp_avg.{key}" in tensors:
                optimizer.state[p] = {
                    "step": torch.tensor(float(state["step"])),
                    "exp_avg": tensors[f"exp_avg.{key}"],
                    "exp_avg_sq": tensors[f"exp_avg_sq.{key}"],
                }
    return Resumed(state["step"], state["log"], state.get("scaler"))


def _difference(found: Mapping[str, object], wanted: Mapping[str, object], ignored: Collection[str]) -> str | None:
    """Describe the first key, apart from `ignored`, whose value differs."""
    for key, value in wanted.items():
        if key not in ignored and found.get(key) != value:
            was, now = (
                f"{each[:12]}..." if isinstance(each, str) and len(each) > 40 else each
                for each in (found.get(key), value)
            )
            return f"was written with {key} = {was}, this run has {now}"
    return None
