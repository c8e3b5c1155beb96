"""The one timer: runs that take turns, so that whatever disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from runtime.console import progress

__all__ = ["Series", "Turns", "measure", "percentiles"]

Visit = Callable[[], Mapping[str, float]]
"""Runs something once and returns the seconds that each of its parts took."""

MOST_ROUNDS = 1000


@dataclass(frozen=True)
class Turns:
    """How long to measure. warmup: rounds before it. runs: rounds; None for what `seconds` hold, at least `least`."""

    seconds: float = 60.0
    warmup: int = 2
    runs: int | None = None
    least: int = 5


@dataclass
class Series:
    """What was measured of one runner: its first visit (files read, sessions made, kernels compiled), then the others.

    parts: seconds by part; each list has one number for each round.
    """

    first: Mapping[str, float] = field(default_factory=dict)
    parts: dict[str, list[float]] = field(default_factory=dict)

    def add(self, visit: Mapping[str, float]) -> None:
        for part, seconds in visit.items():
            self.parts.setdefault(part, []).append(seconds)


def measure(visits: Sequence[Visit], turns: Turns, label: str) -> list[Series]:
    """Visits all in turn, A B C A B C: the warm-up first, then the rounds that count."""
    series = [Series() for _ in visits]
    round_seconds = 0.0
    warmup = [number for number in range(max(1, turns.warmup)) for _ in visits]
    for step, number in enumerate(progress(warmup, label=f"{label}, warm-up")):
        i = step % len(visits)
        if i == 0:
            round_seconds, start = 0.0, time.perf_counter_ns()
        seconds = visits[i]()
        round_seconds = (time.perf_counter_ns() - start) / 1e9
        if number == 0:
            series[i].first = seconds
    rounds = turns.runs or int(np.clip(turns.seconds / max(round_seconds, 1e-6), turns.least, MOST_ROUNDS))
    for step in progress(range(rounds * len(visits)), label=f"{label}, {rounds} rounds"):
        i = step % len(visits)
        series[i].add(visits[i]())
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
