"""Marks: `gpu` tests run where there is an NVIDIA GPU; elsewhere they are skipped, and the report's header says so."""

from __future__ import annotations

import pytest

from export.targets import why_no_gpu

NO_GPU = why_no_gpu()


def pytest_report_header() -> str:
    return f"gpu tests: skipped ({NO_GPU})" if NO_GPU else "gpu tests: run"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if NO_GPU and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=NO_GPU))
