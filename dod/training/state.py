"""The schedule of a run, and the state that it is resumed from: parameters, moments, step and log in one file."""

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

WITHOUT_EFFECT = ("workers", "save_every")
"""Options that do not change what a run computes."""
MAY_CHANGE = ("learning_rate", *WITHOUT_EFFECT)
"""Options that may differ when a run is resumed: a lower learning rate helps a diverging run."""

START = "the weights it started from"

ANEW = "name another --state, or remove the file to start at step 0"

Log = list[dict[str, float]]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train. crop in pixels; clip is the gradient's norm; workers load data.

    A step takes `batch` samples on each process, `accumulation` times. precision: "fp32", "bf16" or "fp16" of the
    networks (bf16 is slower than fp32 on a CPU at few channels: measure). Raises ConfigError for a number out of range.
    """

    steps: int = 1000
    batch: int = 8
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
        least = {"steps": 1, "batch": 1, "crop": 1, "save_every": 1, "accumulation": 1}
        for key in ("workers", "warmup", "weight_decay", "seed"):
            least[key] = 0
        for key, value in least.items():
            if getattr(self, key) < value:
                raise ConfigError(f"--{key.replace('_', '-')} {getattr(self, key)}: it must be at least {value}")
        for key in ("learning_rate", "clip"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"--{key.replace('_', '-')} {getattr(self, key)}: it must be above 0")

    def rate(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, then half a cosine down to 2 % of the peak."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def save(
    file: Path, parameters: dict[str, nn.Parameter], optimizer: AdamW, scaler: Any, state: dict[str, object]
) -> None:
    """Replace the file, once its successor is whole."""
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


class Resumed(NamedTuple):
    """Where a run starts: its next step, its log, the loss scaler's state, and the reason why a state was not used."""

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
    """Fill parameters and optimizer from the file, if it belongs to this run.

    The state of another run is refused while that run is unfinished. A finished one has nothing to lose: this run then
    starts at step 0 and its state replaces the other.

    Args:
        file: The state, as `save` wrote it.
        parameters: The trained parameters by name, filled in place.
        optimizer: AdamW over them, whose moments are filled in.
        run: What decides the run, by key, as the state was saved with: its schedule, its samples, what it stands on,
            and START.

    Raises:
        CheckpointError: The file is malformed.
        TrainingError: The file is the state of another unfinished run; names the first key that differs.
    """
    tensors = read_safetensors(file)
    with safe_open(file, "pt") as opened:
        state = {key: json.loads(value) for key, value in (opened.metadata() or {}).items()}
    found, wanted = state.get("run", {}), json.loads(json.dumps(run))
    stored = {key.removeprefix("parameter."): t.shape for key, t in tensors.items() if key.startswith("parameter.")}
    finished = state["step"] >= found.get("steps", math.inf)
    difference = _difference(found, wanted, {START, *(WITHOUT_EFFECT if finished else MAY_CHANGE)})
    if stored != {key: p.shape for key, p in parameters.items()} and not difference:
        difference = "holds other parameters than this model's"
    difference = difference or _difference(found, wanted, set(wanted) - {START})
    if difference and finished:
        return Resumed(0, [], None, f"{file} {difference}: that run is finished, this one starts at step 0")
    if difference:
        raise TrainingError(f"{file} {difference}; give the same preset and options, {ANEW}")
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


def _difference(found: Mapping[str, object], wanted: Mapping[str, object], but: Collection[str]) -> str | None:
    """Name the first key outside `but` whose value differs."""
    for key, value in wanted.items():
        if key not in but and found.get(key) != value:
            was, now = (
                f"{each[:12]}..." if isinstance(each, str) and len(each) > 40 else each
                for each in (found.get(key), value)
            )
            return f"was written with {key} = {was}, this run has {now}"
    return None
