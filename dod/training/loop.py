"""The optimisation loop that every training command shares: AdamW, warm-up and cosine decay, clipping, resuming."""

from __future__ import annotations

import json
import math
import os
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..errors import TrainingError
from ..tensors import fingerprint, read_safetensors, write_safetensors

LOG_EVERY = 50
MAY_CHANGE = ("learning_rate", "workers", "save_every")
"""What a resumed run may be given another value of: the last two do not change it, the first mends a diverging one."""

Loss = Callable[[Sequence[Tensor], torch.Generator], Tensor]
Log = list[dict[str, float]]


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


def training_parser(prog: str, description: str, commands: dict[str, dict[str, Any]]) -> ArgumentParser:
    """What the training commands share: `command`, pictures, preset, state, and an option for each field of `Schedule`.

    commands: the defaults of each command where they are not those of `Schedule`.
    """
    parser = ArgumentParser(prog=prog, description=description)
    parsers = parser.add_subparsers(dest="command", required=True)
    for name, defaults in commands.items():
        command = parsers.add_parser(name)
        command.add_argument("--photographs", type=Path, required=True, help="folder of clean photographs")
        command.add_argument("--preset", default="mini", help="name, folder or file; default mini")
        command.add_argument(
            "--state", type=Path, default=Path("build/training"), help="where the run is kept to be resumed from"
        )
        command.add_argument(
            "--continue", dest="go_on", action="store_true", help="start from the weights that the preset names"
        )
        for field, value in {**asdict(Schedule()), **defaults}.items():
            option = f"--{field.replace('_', '-')}"
            command.add_argument(option, type=type(value), default=value, help=f"default {value}")
    return parser


def schedule_from(arguments: Namespace) -> Schedule:
    """The schedule that the arguments of a `training_parser` describe."""
    return Schedule(**{name: getattr(arguments, name) for name in asdict(Schedule())})


def training_record(schedule: Schedule, log: Log, **options: object) -> dict[str, object]:
    """What is kept of a run beside the weights that it made: its schedule, its options, some 20 entries of its log."""
    return {"schedule": vars(schedule), "options": options, "log": log[:: max(1, len(log) // 20)]}


def autocast(schedule: Schedule, device: torch.device | str = "cpu") -> torch.autocast:
    """The schedule's precision where a network runs; losses and the closed form stay in float32."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=schedule.precision == "bf16")


def batches(dataset: Dataset, schedule: Schedule, start: int) -> Iterator[Sequence[Tensor]]:
    """The batches of steps start, start + 1, ...: the run's sample i is dataset[i], so a resumed run sees the same."""
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
    loss: Loss,
    dataset: Dataset,
    schedule: Schedule,
    state_folder: Path,
    identity: str = "",
    fast: tuple[Callable[[str], bool], float] = (lambda name: False, 1.0),
) -> Log:
    """Minimise `loss(batch, generator)` over `parameters`; returns the log, one entry for every LOG_EVERY steps.

    fast: which parameters, by name, learn at a multiple of the rate, and the multiple.

    The state (parameters, AdamW's moments, step) is kept in `state_folder` every `save_every` steps; a run with the
    same schedule found there goes on where it stopped. identity: a hash of the frozen weights that the run stands on.
    TrainingError on a loss or gradient that is not finite, or when the state found belongs to another schedule (the key
    is named), to other frozen weights or a start from other weights, or to other parameters.
    """
    identity = f"{identity} {fingerprint(parameters)}"
    groups = [
        {"params": [p for key, p in parameters.items() if fast[0](key) is chosen], "multiple": multiple}
        for chosen, multiple in ((False, 1.0), (True, fast[1]))
    ]
    optimizer = AdamW(groups, betas=(0.9, 0.999), weight_decay=schedule.weight_decay)
    state_folder.mkdir(parents=True, exist_ok=True)
    file = state_folder / f"{name}.state.safetensors"
    start, log = _resume(file, parameters, optimizer, schedule, identity) if file.is_file() else (0, [])
    progress = tqdm(batches(dataset, schedule, start), total=schedule.steps, initial=start, desc=name, mininterval=10)
    recent: list[float] = []
    began = time.monotonic()
    for step, batch in enumerate(progress, start):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step) * group["multiple"]
        value = loss(batch, torch.Generator().manual_seed(schedule.seed * 1_000_003 + step))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        norm = nn.utils.clip_grad_norm_(list(parameters.values()), schedule.clip)
        if not (torch.isfinite(value) and torch.isfinite(norm)):
            raise TrainingError(
                f"{name}: step {step} gave loss {value.item()}, gradient norm {norm.item()}; run again with a lower "
                f"--learning-rate: it goes on from the last state in {state_folder}"
            )
        optimizer.step()
        recent.append(value.item())
        if (step + 1) % LOG_EVERY == 0 or step + 1 == schedule.steps:
            rate = schedule.batch * len(recent) / (time.monotonic() - began)
            log.append({"step": step + 1, "loss": sum(recent) / len(recent), "pictures_per_second": round(rate, 2)})
            progress.set_postfix_str(f"loss {log[-1]['loss']:.5f}, {rate:.1f} pictures/s")
            recent, began = [], time.monotonic()
        if (step + 1) % schedule.save_every == 0 or step + 1 == schedule.steps:
            state = {"step": step + 1, "schedule": asdict(schedule), "log": log, "identity": identity}
            _save(file, parameters, optimizer, state)
    return log


def _save(file: Path, parameters: dict[str, nn.Parameter], optimizer: AdamW, state: dict[str, object]) -> None:
    tensors = {f"parameter.{key}": p.detach() for key, p in parameters.items()}
    for key, p in parameters.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            if p in optimizer.state:
                tensors[f"{moment}.{key}"] = optimizer.state[p][moment]
    temporary = file.with_name(f".{file.name}")
    try:
        metadata = {key: json.dumps(value) for key, value in state.items()}
        write_safetensors({k: t.contiguous() for k, t in tensors.items()}, temporary, metadata)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _resume(
    file: Path, parameters: dict[str, nn.Parameter], optimizer: AdamW, schedule: Schedule, identity: str
) -> tuple[int, Log]:
    anew = "or remove the file to start anew"
    tensors = read_safetensors(file)
    with safe_open(file, "pt") as opened:
        state = {key: json.loads(value) for key, value in (opened.metadata() or {}).items()}
    found = state.get("schedule", {})
    for key, value in asdict(schedule).items():
        if found.get(key) != value and key not in MAY_CHANGE:
            raise TrainingError(
                f"{file} was written with {key} = {found.get(key)}, this run has {value}; give the same value, {anew}"
            )
    stored = {key.removeprefix("parameter."): t.shape for key, t in tensors.items() if key.startswith("parameter.")}
    if stored != {key: p.shape for key, p in parameters.items()}:
        raise TrainingError(f"{file} holds other parameters than this model's; give the preset it belongs to, {anew}")
    if state.get("identity") != identity:
        raise TrainingError(
            f"{file} belongs to a run on other frozen weights, or one that started from other weights; give those, "
            f"{anew}"
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
    return state["step"], state["log"]
