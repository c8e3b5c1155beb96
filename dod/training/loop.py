"""The optimisation loop that every training command shares: accelerate, AdamW, warm-up and cosine decay, resuming."""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..data.images import few
from ..errors import DODError, TrainingError
from ..tensors import fingerprint
from .board import Board
from .state import START, Log, Resumed, Schedule, resume, save

LOG_EVERY = 50
NAMED = 8  # so many samples of a batch stand in an error
PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class Objective(nn.Module):
    """What a run minimises: a module of everything that it needs, trained or frozen.

    `forward(batch, generator)` returns the weighted loss terms by name; their sum is minimised. batch: what the data
    set gives, on this process's device; generator: a CPU generator that belongs to the step.
    """

    def groups(self) -> list[tuple[float, dict[str, nn.Parameter]]]:
        """What is trained: (multiple of the learning rate, parameters by name), each group with a gradient norm of its
        own to be clipped."""
        return [(1.0, {name: p for name, p in self.named_parameters() if p.requires_grad})]

    def preview(self) -> dict[str, Tensor]:
        """Images [3, H, W] in [-1, 1] that show how far the run is, for TensorBoard."""
        return {}


def training_record(schedule: Schedule, log: Log, **options: object) -> dict[str, object]:
    """What is kept of a run beside the weights that it made: its schedule, its options, some 20 entries of its log."""
    return {"schedule": vars(schedule), "options": options, "log": log_excerpt(log)}


def log_excerpt(log: Log) -> Log:
    """Return some 20 entries of a log."""
    return log[:: max(1, len(log) // 20)]


def batches(
    dataset: Dataset, schedule: Schedule, start: int, process: int = 0, processes: int = 1
) -> Iterator[Sequence[Tensor]]:
    """The batches of steps start, start + 1, ... of one process, `accumulation` of them for each step.

    The run's sample i is dataset[i], so a resumed run sees the same.
    """
    span = schedule.batch * schedule.accumulation * processes
    indices = [
        first + offset
        for first in range(start * span, schedule.steps * span, schedule.batch * processes)
        for offset in range(process * schedule.batch, (process + 1) * schedule.batch)
    ]
    loader = DataLoader(
        dataset,
        batch_size=schedule.batch,
        sampler=indices,
        num_workers=schedule.workers,
        worker_init_fn=_ignore_sigterm,
        prefetch_factor=4 if schedule.workers else None,
    )
    return iter(loader)


def train(
    name: str,
    objective: Objective,
    dataset: Dataset,
    schedule: Schedule,
    state_folder: Path,
    stands_on: Mapping[str, object] | None = None,
) -> Log:
    """Minimise an objective; returns the log, one entry for every LOG_EVERY steps (mean terms, images per second).

    The state (parameters, AdamW's moments, step) is kept in `state_folder` every `save_every` steps and on SIGTERM; a
    run with the same schedule found there goes on where it stopped, to the bit. The result of a finished one is loaded,
    and the state of another finished run is replaced. TensorBoard's scalars and images go beside it. stands_on: what
    else decides the run, by key, such as a hash of its frozen weights; what decides a data set's samples is its
    `identity`, likewise.

    TrainingError on a loss or gradient that is not finite (with the step, the samples and the last good state), for
    fp16 without a GPU, or when the state found belongs to another run that is unfinished (the key is named).
    SystemExit(143) after SIGTERM, once the state is saved.
    """
    if schedule.precision == "fp16" and str(process().device) == "cpu":
        raise TrainingError("--precision fp16 needs a GPU: take fp32 or bf16")
    groups = objective.groups()
    parameters = {key: parameter for _, members in groups for key, parameter in members.items()}
    run = {
        **asdict(schedule),
        **getattr(dataset, "identity", {}),
        **(stands_on or {}),
        "processes": process().num_processes,
        START: fingerprint(parameters),
    }
    optimizer = AdamW(
        [{"params": list(members.values()), "multiple": multiple} for multiple, members in groups],
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
    main, processes = accelerator.is_main_process, accelerator.num_processes
    loaded = batches(dataset, schedule, start, accelerator.process_index, processes)
    progress = tqdm(range(start, schedule.steps), total=schedule.steps, initial=start, desc=name, mininterval=10)
    progress.disable = not main
    terms: dict[str, float] = {}
    recent, began, saved = 0, time.monotonic(), start
    board_folder = state_folder / "tensorboard" / name
    with _sigterm() as terminated, _ending_workers(loaded), Board(board_folder, main) as board:
        for step in progress:
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step) * group["multiple"]
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
                        accelerator.unscale_gradients()  # once for all groups: a second time is an error
                        norm = sum((_clip(members, schedule.clip) for _, members in groups), norm)
                    # A step whose loss scale overflowed is skipped by the scaler: its gradients are no failure.
                    if not total.isfinite() or not (norm.isfinite() or scaler):
                        samples = _samples(dataset, step, part, schedule, accelerator)
                        raise TrainingError(
                            f"{name}: step {step} gave loss {total.item()}, gradient norm {norm.item()} on {samples}; "
                            f"run again with a lower --learning-rate: {_goes_on(file, saved)}"
                        )
                    stepper.step()
                    stepper.zero_grad()
                for key, value in losses.items():
                    terms[key] = terms.get(key, 0.0) + value.item()
                recent += 1
            last = step + 1 == schedule.steps
            if (step + 1) % LOG_EVERY == 0 or last:
                means = {key: _mean(accelerator, value / recent) for key, value in terms.items()}
                rate = schedule.batch * recent * processes / (time.monotonic() - began)
                log.append({"step": step + 1, "loss": sum(means.values()), "images_per_second": round(rate, 2)})
                log[-1] |= means if len(means) > 1 else {}
                progress.set_postfix_str(f"loss {log[-1]['loss']:.5f}, {rate:.1f} images/s")
                board.scalars(step + 1, {**log[-1], "learning_rate": schedule.rate(step), "gradient_norm": norm.item()})
                terms, recent, began = {}, 0, time.monotonic()
            stopped = _any(accelerator, bool(terminated))
            if (step + 1) % schedule.save_every == 0 or last or stopped:
                saved = step + 1
                if main:
                    save(file, parameters, optimizer, scaler, {"step": step + 1, "run": run, "log": log})
                    board.images(step + 1, objective.preview)
                if stopped and not last:
                    tqdm.write(f"{name}: stopped by SIGTERM after step {step}; the same command goes on from there")
                    raise SystemExit(128 + signal.SIGTERM)
    return log


@contextmanager
def _ending_workers(loaded: Iterator[Sequence[Tensor]]) -> Iterator[None]:
    """Ends the loader's processes on the way out. They would end with the iterator, which the traceback of an error
    keeps; then the SIGTERM of this process's exit is left, which they ignore, and it would wait for them for ever."""
    try:
        yield
    finally:
        shut_down = getattr(loaded, "_shutdown_workers", None)  # there are none without workers
        if shut_down:
            shut_down()


def process() -> PartialState:
    """This process among those that train together, as `accelerate launch` started it."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def is_main_process() -> bool:
    """Whether this process is the one that speaks and writes."""
    return process().is_main_process


def say(text: str) -> None:
    """Print, from the main process alone."""
    if is_main_process():
        print(text)


def cost(log: Log) -> str:
    """What a step of a run cost: images per second (the median of the log's) and the process's peak memory."""
    speeds = sorted(entry["images_per_second"] for entry in log)
    text = f"{speeds[len(speeds) // 2]:.1f} images/s, peak memory"
    text += f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB"
    if torch.cuda.is_available():
        text += f", on the GPU {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
    return text


def _ignore_sigterm(_: int) -> None:
    """SIGTERM often goes to a whole group of processes: a worker's end would stop the step that is to be saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def _sigterm() -> Iterator[list[int]]:
    """A list that SIGTERM fills, instead of ending the process."""
    received: list[int] = []
    if current_thread() is not main_thread():  # only the main thread may set a handler
        yield received
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def _clip(members: dict[str, nn.Parameter], limit: float) -> Tensor:
    return nn.utils.clip_grad_norm_(list(members.values()), limit)


def _mean(accelerator: Accelerator, value: float) -> float:
    if accelerator.num_processes == 1:
        return value
    gathered: Any = accelerator.gather(torch.tensor([value], device=accelerator.device))
    return float(gathered.mean())


def _any(accelerator: Accelerator, value: bool) -> bool:
    """Whether it holds on one of the processes: they stop after the same step."""
    if accelerator.num_processes == 1:
        return value
    gathered: Any = accelerator.gather(torch.tensor([float(value)], device=accelerator.device))
    return bool(gathered.any())


def _next(loaded: Iterator[Sequence[Tensor]]) -> Sequence[Tensor]:
    """The next batch. A worker process hands an error on with its whole traceback in it: only its last line is told."""
    try:
        return next(loaded)
    except DODError as error:
        line = str(error).strip().splitlines()[-1]
        raise type(error)(line.removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")) from error


def _goes_on(file: Path, step: int) -> str:
    return f"it goes on from step {step}, in {file}" if file.is_file() else "it starts anew, for no state was saved yet"


def _samples(dataset: Dataset, step: int, part: int, schedule: Schedule, accelerator: Accelerator) -> str:
    first = (step * schedule.accumulation + part) * accelerator.num_processes + accelerator.process_index
    indices = range(first * schedule.batch, (first + 1) * schedule.batch)
    describe: Callable[[int], str] = getattr(dataset, "describe", lambda i: f"sample {i}")
    return few([describe(i) for i in indices], NAMED)
