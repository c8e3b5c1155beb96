"""The optimisation loop that every training command shares: AdamW, warm-up and cosine decay, clipping, resuming."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..errors import TrainingError

LOG_EVERY = 50


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train. crop in pixels; clip is the gradient's norm; workers load data.

    precision: "fp32", or "bf16" for autocast (slower than fp32 on a CPU at few channels: measure).
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
    precision: str = "fp32"

    def rate(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, then half a cosine down to 2 % of the peak."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def add_schedule_arguments(parser, **defaults: object) -> None:
    """One command-line option for each field of `Schedule`, with this command's defaults."""
    for name, value in {**asdict(Schedule()), **defaults}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")


def schedule_from(arguments) -> Schedule:
    """The schedule that parsed arguments describe."""
    return Schedule(**{name: getattr(arguments, name) for name in asdict(Schedule())})


def autocast(schedule: Schedule, device: torch.device | str = "cpu") -> torch.autocast:
    """The schedule's precision where a network runs; losses and the closed form stay in float32."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=schedule.precision == "bf16")


def batches(dataset: Dataset, schedule: Schedule, start: int) -> Iterator[Iterable[Tensor]]:
    """The batches of steps start, start + 1, ...: sample i of the run is dataset[i], so a resumed run sees the same ones."""
    indices = range(start * schedule.batch, schedule.steps * schedule.batch)
    loader = DataLoader(
        dataset,
        batch_size=schedule.batch,
        sampler=indices,
        num_workers=schedule.workers,
        prefetch_factor=4 if schedule.workers else None,
    )
    return iter(loader)


def train(
    name: str,
    parameters: dict[str, nn.Parameter],
    loss: Callable[[Iterable[Tensor], torch.Generator], Tensor],
    dataset: Dataset,
    schedule: Schedule,
    state_folder: Path,
) -> list[dict[str, float]]:
    """Minimise `loss(batch, generator)` over `parameters`; returns the log, one entry for every LOG_EVERY steps.

    The state (parameters, AdamW's moments, step) is kept in `state_folder` every `save_every` steps; a run with the same
    schedule found there goes on where it stopped. TrainingError on a loss or gradient that is not finite, or when the
    state found belongs to another schedule (the key is named).
    """
    optimizer = torch.optim.AdamW(parameters.values(), betas=(0.9, 0.999), weight_decay=schedule.weight_decay)
    state_folder.mkdir(parents=True, exist_ok=True)
    start, log = _resume(name, parameters, optimizer, schedule, state_folder)
    progress = tqdm(batches(dataset, schedule, start), total=schedule.steps, initial=start, desc=name, mininterval=10)
    recent: list[float] = []
    began = time.monotonic()
    for step, batch in enumerate(progress, start):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        value = loss(batch, torch.Generator().manual_seed(schedule.seed * 1_000_003 + step))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        norm = nn.utils.clip_grad_norm_(list(parameters.values()), schedule.clip)
        if not (torch.isfinite(value) and torch.isfinite(norm)):
            raise TrainingError(
                f"{name}: step {step} gave loss {value.item()}, gradient norm {norm.item()}; the last good state is in "
                f"{state_folder}; lower --learning-rate and run again to go on from there"
            )
        optimizer.step()
        recent.append(value.item())
        if (step + 1) % LOG_EVERY == 0 or step + 1 == schedule.steps:
            rate = schedule.batch * len(recent) / (time.monotonic() - began)
            log.append({"step": step + 1, "loss": sum(recent) / len(recent), "pictures_per_second": round(rate, 2)})
            progress.set_postfix_str(f"loss {log[-1]['loss']:.5f}, {rate:.1f} pictures/s")
            recent, began = [], time.monotonic()
        if (step + 1) % schedule.save_every == 0 or step + 1 == schedule.steps:
            _save(name, parameters, optimizer, schedule, step + 1, log, state_folder)
    return log


def _save(name, parameters, optimizer, schedule, step, log, folder: Path) -> None:
    tensors = {f"parameter.{key}": p.detach() for key, p in parameters.items()}
    for key, p in parameters.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            if p in optimizer.state:
                tensors[f"{moment}.{key}"] = optimizer.state[p][moment]
    metadata = {"step": str(step), "schedule": json.dumps(asdict(schedule)), "log": json.dumps(log)}
    temporary = folder / f".{name}.tmp"
    save_file({k: t.contiguous() for k, t in tensors.items()}, temporary, metadata)
    os.replace(temporary, folder / f"{name}.state.safetensors")


def _resume(name, parameters, optimizer, schedule: Schedule, folder: Path) -> tuple[int, list]:
    from safetensors import safe_open

    file = folder / f"{name}.state.safetensors"
    if not file.is_file():
        return 0, []
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    found = json.loads(metadata["schedule"])
    for key, value in asdict(schedule).items():
        if found.get(key) != value and key not in ("workers", "save_every"):
            raise TrainingError(
                f"{file} was written with {key} = {found.get(key)}, this run has {value}; "
                "give the same value, or remove the file to start anew"
            )
    tensors, step = load_file(file), int(metadata["step"])
    with torch.no_grad():
        for key, p in parameters.items():
            p.copy_(tensors[f"parameter.{key}"])
            if f"exp_avg.{key}" in tensors:
                optimizer.state[p] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": tensors[f"exp_avg.{key}"],
                    "exp_avg_sq": tensors[f"exp_avg_sq.{key}"],
                }
    return step, json.loads(metadata["log"])
