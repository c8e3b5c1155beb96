"""Optimization loop of every training command: accelerate, AdamW, warm-up and cosine decay, resuming."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..data.images import few
from ..errors import DODError, TrainingError
from ..tensors import fingerprint
from .board import Board
from .processes import (
    any_process,
    end_workers,
    ignore_sigterm,
    is_main_process,
    mean_over_processes,
    process,
    say,
    sigterm_flag,
)
from .state import START, Log, Resumed, Schedule, resume, save

__all__ = ["LOG_EVERY", "PRECISIONS", "Objective", "batches", "train"]

LOG_EVERY = 50
"""Steps from one entry of the log to the next."""
NAMED = 8
"""Maximum number of a batch's samples that an error names."""
PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""Precisions of training, and accelerate's names for them."""

LOGGER = logging.getLogger("dod.training")


class Objective(nn.Module):
    """Loss of a run: a module that holds all networks that the loss needs, trained or frozen.

    `forward(batch, generator)` returns the weighted loss terms by name; their sum is minimized. The batch is on the
    device of the process, and the CPU generator is seeded for the step.
    """

    def groups(self) -> list[tuple[float, dict[str, nn.Parameter]]]:
        """Return the trained parameters in groups.

        Returns:
            (learning rate multiplier, parameters by name) of each group. Gradient norms are clipped per group.
        """
        return [(1.0, {name: p for name, p in self.named_parameters() if p.requires_grad})]

    def preview(self) -> dict[str, Tensor]:
        """Return images [3, H, W] in -1 to 1, by name, that TensorBoard shows during the run."""
        return {}


def batches(
    dataset: Dataset, schedule: Schedule, start: int, process: int = 0, processes: int = 1
) -> Iterator[Sequence[Tensor]]:
    """Return the batches of one process from a step on, `accumulation` of them for each step.

    The samples of the run are dataset[0], dataset[1], ..., so a resumed run continues with the same ones.

    Args:
        dataset: samples by index.
        schedule: batch size, accumulation, number of steps and workers.
        start: first step.
        process: index of the process.
        processes: number of processes.

    Returns:
        Iterator of batches.
    """
    span = schedule.batch_size * schedule.accumulation * processes
    indices = [
        first + offset
        for first in range(start * span, schedule.steps * span, schedule.batch_size * processes)
        for offset in range(process * schedule.batch_size, (process + 1) * schedule.batch_size)
    ]
    loader = DataLoader(
        dataset,
        batch_size=schedule.batch_size,
        sampler=indices,
        num_workers=schedule.workers,
        worker_init_fn=ignore_sigterm,
        prefetch_factor=4 if schedule.workers else None,
    )
    return iter(loader)


def train(
    name: str,
    objective: Objective,
    dataset: Dataset,
    schedule: Schedule,
    state_folder: Path,
    depends_on: Mapping[str, object] | None = None,
) -> Log:
    """Minimize an objective.

    The state (parameters, AdamW's moments, step) is saved in `state_folder` every `save_every` steps and on SIGTERM. A
    run with the same schedule continues from it with bit-identical results. A finished run is loaded and not repeated;
    the state of another finished run is replaced. TensorBoard's files are written beside the state.

    Args:
        name: name of the run and of its state file.
        objective: the loss; its trained parameters are updated in place.
        dataset: samples by index; its `identity`, if any, says what determines them.
        schedule: length, learning rate and precision.
        state_folder: folder of the state.
        depends_on: everything else that determines the run, by key, such as a hash of its frozen weights.

    Returns:
        The log: one entry for every `LOG_EVERY` steps with mean loss terms and images per second.

    Raises:
        TrainingError: a loss or gradient is not finite, fp16 is requested without a GPU, or the state found belongs to
            another, unfinished run.
        SystemExit: SIGTERM was received (code 143); the state is saved.
    """
    if schedule.precision == "fp16" and str(process().device) == "cpu":
        raise TrainingError("--precision fp16 needs a GPU: use fp32 or bf16")
    groups = objective.groups()
    parameters = {key: parameter for _, members in groups for key, parameter in members.items()}
    run = {
        **asdict(schedule),
        **getattr(dataset, "identity", {}),
        **(depends_on or {}),
        "processes": process().num_processes,
        START: fingerprint(parameters),
    }
    optimizer = AdamW(
        [{"params": list(members.values()), "lr_multiplier": multiplier} for multiplier, members in groups],
        betas=(0.9, 0.999),
        weight_decay=schedule.weight_decay,
    )
    state_folder.mkdir(parents=True, exist_ok=True)
    file = state_folder / f"{name}.state.safetensors"
    start, log, scale, note = resume(file, parameters, optimizer, run) if file.is_file() else Resumed(0, [], None)
    if note:
        say(note)
    accelerator = Accelerator(
        mixed_precision=PRECISIONS[schedule.precision], gradient_accumulation_steps=schedule.accumulation
    )
    scaler = accelerator.scaler
    if scaler and scale:
        scaler.load_state_dict(scale)
    prepared, stepper = accelerator.prepare(objective, optimizer)
    processes = accelerator.num_processes
    loaded = batches(dataset, schedule, start, accelerator.process_index, processes)
    progress = _progress(name, start, schedule.steps)
    terms: dict[str, float] = {}
    recent, began, saved = 0, time.monotonic(), start
    board_folder = state_folder / "tensorboard" / name
    with sigterm_flag() as terminated, end_workers(loaded), Board(board_folder, is_main_process()) as board:
        for step in progress:
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate_at(step) * group["lr_multiplier"]
            for part in range(schedule.accumulation):
                batch = [each.to(accelerator.device) for each in _next(loaded)]
                seed = (schedule.seed * 1_000_003 + step) * schedule.accumulation + part
                generator = torch.Generator().manual_seed(seed * processes + accelerator.process_index)
                with accelerator.accumulate(prepared):
                    losses = prepared(batch, generator)
                    total = torch.stack(list(losses.values())).sum()
                    accelerator.backward(total)
                    norm = total.new_zeros(())
                    if accelerator.sync_gradients:
                        accelerator.unscale_gradients()  # once for all groups: a second call is an error
                        norm = sum((_clip(members, schedule.clip) for _, members in groups), norm)
                    # The loss scaler skips a step that overflowed: its gradients are not a failure.
                    if not total.isfinite() or not (norm.isfinite() or scaler):
                        samples = _samples(dataset, step, part, schedule, accelerator)
                        raise TrainingError(
                            f"{name}: step {step} gave loss {total.item()}, gradient norm {norm.item()} on {samples}; "
                            f"run again with a lower --learning-rate: {_continuation(file, saved)}"
                        )
                    stepper.step()
                    stepper.zero_grad()
                for key, value in losses.items():
                    terms[key] = terms.get(key, 0.0) + value.item()
                recent += 1
            last = step + 1 == schedule.steps
            if (step + 1) % LOG_EVERY == 0 or last:
                means = {key: mean_over_processes(accelerator, value / recent) for key, value in terms.items()}
                speed = schedule.batch_size * recent * processes / (time.monotonic() - began)
                log.append({"step": step + 1, "loss": sum(means.values()), "images_per_second": round(speed, 2)})
                log[-1] |= means if len(means) > 1 else {}
                progress.set_postfix_str(f"loss {log[-1]['loss']:.5f}, {speed:.1f} images/s")
                extra = {"learning_rate": schedule.learning_rate_at(step), "gradient_norm": norm.item()}
                board.scalars(step + 1, {**log[-1], **extra})
                terms, recent, began = {}, 0, time.monotonic()
            stopped = any_process(accelerator, bool(terminated))
            if (step + 1) % schedule.save_every == 0 or last or stopped:
                saved = step + 1
                if is_main_process():
                    save(file, parameters, optimizer, scaler, {"step": step + 1, "run": run, "log": log})
                    board.images(step + 1, objective.preview)
                if stopped and not last:
                    tqdm.write(f"{name}: stopped by SIGTERM after step {step}; the same command continues from there")
                    raise SystemExit(128 + signal.SIGTERM)
    return log


def _progress(name: str, start: int, steps: int) -> tqdm:
    hidden = not is_main_process() or not LOGGER.isEnabledFor(logging.WARNING)
    return tqdm(range(start, steps), name, steps, initial=start, mininterval=10, dynamic_ncols=True, disable=hidden)


def _clip(members: dict[str, nn.Parameter], limit: float) -> Tensor:
    return nn.utils.clip_grad_norm_(list(members.values()), limit)


def _next(loaded: Iterator[Sequence[Tensor]]) -> Sequence[Tensor]:
    """Return the next batch. An error of a worker process contains a traceback; only its last line is kept."""
    try:
        return next(loaded)
    except DODError as error:
        line = str(error).strip().splitlines()[-1]
        raise type(error)(line.removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")) from error


def _continuation(file: Path, step: int) -> str:
    return f"it continues from step {step}, in {file}" if file.is_file() else "it starts at step 0 (no state was saved)"


def _samples(dataset: Dataset, step: int, part: int, schedule: Schedule, accelerator: Accelerator) -> str:
    first = (step * schedule.accumulation + part) * accelerator.num_processes + accelerator.process_index
    indices = range(first * schedule.batch_size, (first + 1) * schedule.batch_size)
    describe: Callable[[int], str] = getattr(dataset, "describe", lambda i: f"sample {i}")
    return few([describe(i) for i in indices], NAMED)
