"""The timer takes turns, and its figures are those of numpy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from benchmarks.timing import Turns, measure, percentiles


def test_runs_take_turns_after_the_warm_up() -> None:
    order: list[str] = []

    def visit(name: str) -> Callable[[], Mapping[str, float]]:
        def run() -> Mapping[str, float]:
            order.append(name)
            return {"picture": float(len(order))}

        return run

    series = measure([visit(name) for name in "abc"], Turns(warmup=2, runs=4), "test")
    assert "".join(order) == "abc" * 6
    assert [each.first["picture"] for each in series] == [1, 2, 3]
    assert series[1].parts["picture"] == [8, 11, 14, 17]


@pytest.mark.parametrize(("seconds", "rounds"), [(0.001, 3), (0.2, 10)])
def test_rounds_fill_the_time(seconds: float, rounds: int) -> None:
    def visit() -> Mapping[str, float]:
        time.sleep(0.01)
        return {"picture": 0.01}

    (series,) = measure([visit], Turns(seconds=seconds, warmup=1, least=3), "test")
    assert rounds <= len(series.parts["picture"]) <= rounds * 2
    assert len(series.parts["picture"]) == 3 or seconds > 0.1


def test_percentiles_are_in_milliseconds() -> None:
    seconds = np.random.default_rng(0).uniform(0.001, 0.002, 101)
    found = percentiles(list(seconds))
    assert found["p90"] == pytest.approx(np.quantile(seconds, 0.9) * 1e3, abs=1e-6)
    assert found["min"] <= found["p50"] <= found["p90"] <= found["p99"]
