"""The timer, with a clock that only the timed runs advance."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from benchmarks import timing
from benchmarks.timing import Rounds, measure, percentiles


class Clock:
    """Stand-in for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter_ns(self) -> int:
        return round(self.now * 1e9)

    def run(self, seconds: float) -> Callable[[], Mapping[str, float]]:
        """Return a run that takes `seconds`."""

        def run() -> Mapping[str, float]:
            self.now += seconds
            return {"image": seconds}

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "time", made)
    return made


def test_models_run_in_turn_after_the_first_round() -> None:
    order: list[str] = []

    def run_of(name: str) -> Callable[[], Mapping[str, float]]:
        def run() -> Mapping[str, float]:
            order.append(name)
            return {"image": float(len(order))}

        return run

    timings = measure([run_of(name) for name in "abc"], Rounds(warmup=0, runs=4), "test")
    assert "".join(order) == "abc" * 5
    assert [each.first["image"] for each in timings] == [1, 2, 3]
    assert timings[1].parts["image"] == [5, 8, 11, 14]


@pytest.mark.parametrize(("seconds", "rounds"), [(0.45, 9), (0.01, 3), (1e6, timing.MAX_ROUNDS)])
def test_rounds_fill_the_time(clock: Clock, seconds: float, rounds: int) -> None:
    (found,) = measure([clock.run(0.05)], Rounds(seconds, warmup=0, min_rounds=3), "test")
    assert len(found.parts["image"]) == rounds


def test_warm_up_does_not_count(clock: Clock) -> None:
    (found,) = measure([clock.run(0.05)], Rounds(warmup=1, runs=2), "test")
    assert found.parts["image"] == [0.05, 0.05]
    assert clock.now == pytest.approx(0.05 * (2 + 20 + 2))  # two rounds first, 20 of warm-up, two that count


def test_percentiles_are_in_milliseconds() -> None:
    seconds = np.random.default_rng(0).uniform(0.001, 0.002, 101)
    found = percentiles(list(seconds))
    assert found["p90"] == pytest.approx(np.quantile(seconds, 0.9) * 1e3, abs=1e-6)
    assert found["min"] <= found["p50"] <= found["p90"] <= found["p99"]
