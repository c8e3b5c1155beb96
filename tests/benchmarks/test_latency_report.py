"""The table of the latency benchmark and its notes."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.comparison import LatencyResult
from benchmarks.latency_report import columns, notes

PARTS = ("encoder", "unet", "decoder", "image")
REFERENCE = LatencyResult(
    size=64,
    batch=1,
    path="haze",
    backend="pytorch_cpu",
    precision="fp32",
    device="cpu",
    description="",
    runs=200,
    first_ms=500.0,
    ms={part: {"p50": 10.0, "p90": 11.0, "p99": 12.0, "min": 9.0, "mean": 10.0} for part in PARTS},
    snr_db=float("inf"),
    psnr_db=float("inf"),
    threshold=None,
    passed=None,
    speed_up=1.0,
)


def cells(result: LatencyResult) -> dict[str, object]:
    headers, (row,) = columns([result])
    return dict(zip(headers, row, strict=True))


def test_a_result_below_its_threshold_has_no_speed_up() -> None:
    failed = replace(REFERENCE, backend="openvino", snr_db=60.0, threshold="SNR 70 dB", passed=False, speed_up=None)
    row = cells(failed)
    assert row["speed-up"] == "-" and row["parity"] == "FAILED: SNR 70 dB" and row["SNR dB"] == "60.0"
    row = cells(replace(failed, snr_db=75.0, passed=True, speed_up=2.0, batch=4))
    assert row["speed-up"] == "2.00x" and row["parity"] == "ok: SNR 70 dB" and row["size"] == "64 x4"
    assert cells(REFERENCE)["parity"] == "reference" and cells(REFERENCE)["mfm"] == "-"


def test_notes_warn_about_few_runs_and_a_busy_machine() -> None:
    quiet = "\n".join(notes([REFERENCE]))
    assert "200 runs" in quiet and "--runs" not in quiet and "unsteady" not in quiet
    image = {**REFERENCE.ms["image"], "p90": 14.0}
    busy = replace(REFERENCE, runs=5, ms={**REFERENCE.ms, "image": image})
    text = "\n".join(notes([busy, REFERENCE]))
    assert "p99 of 5 runs" in text and "1 of 2 results are unsteady" in text
