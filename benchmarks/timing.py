"""The one timer: runs that take turns, so that whatever disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dod_runtime.console import progress

__all__ = ["Series", "Turns", "measure", "percentiles"]

Visit = Callable[[], Mapping[str, float]]
"""Runs something once and returns the seconds that each of its parts took."""

MOST_ROUNDS = 1000


@dataclass(frozen=True)
class Turns:
    """How long to measure. seconds: of the rounds that count, at least `least` of them; runs: their number, if given.

    warmup: seconds of rounds before. The first never counts; where a round takes longer than that, all others do.
    """

    seconds: float = 60.0
    warmup: float = 1.0
    runs: int | None = None
    least: int = 5


@dataclass
class Series:
    """What was measured of one runner: its first visit (files read, sessions made, kernels compiled), then the others.

    parts: seconds by part; each list has one number for each round that counts.
    """

    first: Mapping[str, float] = field(default_factory=dict)
    parts: dict[str, list[float]] = field(default_factory=dict)

    def add(self, visit: Mapping[str, float]) -> None:
        for part, seconds in visit.items():
            self.parts.setdefault(part, []).append(seconds)


def measure(visits: Sequence[Visit], turns: Turns, label: str) -> list[Series]:
    """Visits all in turn, A B C A B C, as long as `turns` says."""
    series = [Series() for _ in visits]

    def run(rounds: int, what: str, counts: bool = True) -> float:
        start = time.perf_counter_ns()
        for step in progress(range(rounds * len(visits)), label=f"{label}, {what}"):
            visit, each = visits[step % len(visits)], series[step % len(visits)]
            seconds = visit()
            each.first = each.first or seconds
            if counts:
                each.add(seconds)
        return (time.perf_counter_ns() - start) / 1e9

    run(1, "first round", counts=False)
    one, done = run(1, "second round"), 1
    if one < turns.warmup:
        for each in series:
            each.parts.clear()
        rounds, done = math.ceil(turns.warmup / one), 0
        one = run(rounds, "warm-up", counts=False) / rounds
    total = turns.runs or int(np.clip(turns.seconds / one, turns.least, MOST_ROUNDS))
    run(total - done, f"{total} rounds")
    return series


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99, least and mean in milliseconds, interpolated between neighbours.

    >>> percentiles([0.001, 0.002, 0.003])["p50"]
    2.0
    """
    values = np.asarray(seconds, np.float64) * 1e3
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    named = {"p50": p50, "p90": p90, "p99": p99, "min": values.min(), "mean": values.mean()}
    return {name: round(float(value), 6) for name, value in named.items()}
