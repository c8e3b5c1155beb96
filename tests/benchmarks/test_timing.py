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
            return {"image": float(len(order))}

        return run

    series = measure([visit(name) for name in "abc"], Turns(warmup=0, runs=4), "test")
    assert "".join(order) == "abc" * 5
    assert [each.first["image"] for each in series] == [1, 2, 3]
    assert series[1].parts["image"] == [5, 8, 11, 14]


def slow() -> Mapping[str, float]:
    time.sleep(0.005)
    return {"image": 0.005}


def test_rounds_fill_the_time() -> None:
    assert 3 < len(measure([slow], Turns(seconds=0.4, warmup=0.001, least=3), "test")[0].parts["image"]) <= 80
    assert len(measure([slow], Turns(seconds=0.001, warmup=0.001, least=3), "test")[0].parts["image"]) == 3


def test_warm_up_does_not_count() -> None:
    visits: list[int] = []

    def visit() -> Mapping[str, float]:
        visits.append(len(visits))
        return {**slow(), "visit": len(visits)}

    (series,) = measure([visit], Turns(warmup=0.1, runs=2), "test")
    assert len(series.parts["visit"]) == 2 and series.parts["visit"][0] >= 4


def test_percentiles_are_in_milliseconds() -> None:
    seconds = np.random.default_rng(0).uniform(0.001, 0.002, 101)
    found = percentiles(list(seconds))
    assert found["p90"] == pytest.approx(np.quantile(seconds, 0.9) * 1e3, abs=1e-6)
    assert found["min"] <= found["p50"] <= found["p90"] <= found["p99"]
