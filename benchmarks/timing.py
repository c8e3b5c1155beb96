"""Timing of several models in turn, so that a disturbance of the machine affects all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dod_runtime.console import progress

__all__ = ["Rounds", "Timings", "measure", "percentiles"]

TimedRun = Callable[[], Mapping[str, float]]
"""Function that runs something once and returns the seconds of each part."""

MAX_ROUNDS = 1000
"""Maximum number of rounds that `Rounds.seconds` leads to."""


@dataclass(frozen=True)
class Rounds:
    """Duration of a measurement. In a round, every model runs once.

    Attributes:
        seconds: time of the counted rounds.
        warmup: time in seconds of the rounds before, which do not count. The first round never counts. If a round
            takes longer than the warm-up, all later rounds count.
        runs: number of counted rounds; overrides `seconds`.
        min_rounds: minimum number of counted rounds, whatever `seconds` is.
    """

    seconds: float = 60.0
    warmup: float = 1.0
    runs: int | None = None
    min_rounds: int = 5


@dataclass
class Timings:
    """Times of one model.

    Attributes:
        first: seconds of each part in the first run, which reads files, creates sessions and compiles kernels.
        parts: seconds of each part, one number for each counted round.
    """

    first: Mapping[str, float] = field(default_factory=dict)
    parts: dict[str, list[float]] = field(default_factory=dict)

    def add(self, seconds: Mapping[str, float]) -> None:
        """Append the times of one run.

        Args:
            seconds: seconds of each part.
        """
        for part, value in seconds.items():
            self.parts.setdefault(part, []).append(value)


def measure(timed_runs: Sequence[TimedRun], rounds: Rounds, label: str) -> list[Timings]:
    """Measure models in turn: A B C, A B C, and so on.

    Args:
        timed_runs: one function for each model.
        rounds: duration of the measurement.
        label: label of the progress bar.

    Returns:
        Times of each model, in the order of `timed_runs`.
    """
    timings = [Timings() for _ in timed_runs]

    def run(number: int, description: str, counts: bool = True) -> float:
        start = time.perf_counter_ns()
        for step in progress(range(number * len(timed_runs)), label=f"{label}, {description}"):
            model = step % len(timed_runs)
            seconds = timed_runs[model]()
            timings[model].first = timings[model].first or seconds
            if counts:
                timings[model].add(seconds)
        return (time.perf_counter_ns() - start) / 1e9

    run(1, "first round", counts=False)
    round_seconds, done = run(1, "second round"), 1
    if round_seconds < rounds.warmup:
        for each in timings:
            each.parts.clear()
        number, done = math.ceil(rounds.warmup / round_seconds), 0
        round_seconds = run(number, "warm-up", counts=False) / number
    total = rounds.runs or int(np.clip(rounds.seconds / round_seconds, rounds.min_rounds, MAX_ROUNDS))
    run(total - done, f"{total} rounds")
    return timings


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return p50, p90, p99, minimum and mean in milliseconds; percentiles interpolate linearly.

    Args:
        seconds: times in seconds, at least one.

    Returns:
        Milliseconds by `p50`, `p90`, `p99`, `min` and `mean`.

    Example:
        >>> percentiles([0.001, 0.002, 0.003])["p50"]
        2.0
    """
    values = np.asarray(seconds, np.float64) * 1e3
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    named = {"p50": p50, "p90": p90, "p99": p99, "min": values.min(), "mean": values.mean()}
    return {name: round(float(value), 6) for name, value in named.items()}
