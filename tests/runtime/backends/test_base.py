"""Descriptions and choices that depend on no library."""

from __future__ import annotations

from dod_runtime.backends.base import BackendInfo, choose_precision, cpu_place, kept_sessions


def test_choose_precision() -> None:
    assert choose_precision("auto", ("fp16", "fp32"), "fp32") == "fp32"
    assert choose_precision("auto", ("fp16",), "fp32") == "fp16"
    assert choose_precision("fp32", ("fp16",), "fp16") is None
    assert choose_precision("auto", (), "fp16") is None


def test_kept_sessions() -> None:
    assert kept_sessions(1) == 8 and kept_sessions(1 << 30) == 4 and kept_sessions(1 << 40) == 1


def test_info_in_words() -> None:
    info = BackendInfo("openvino", "2026.4.1", cpu_place(2), "bf16", "requested")
    words = str(info).replace(",", "").split()
    assert words == ["openvino", "2026.4.1", "on", "CPU", "2", "threads", "bf16"]
