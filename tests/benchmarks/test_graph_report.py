"""The table of the graph benchmark."""

from __future__ import annotations

from benchmarks.graph_report import format_times


def test_speed_is_relative_to_the_model_as_loaded() -> None:
    merged, plain = ("unet_merged", "after"), ("unet_plain", "before")
    times = {(*plain, "torch"): 60.0, (*merged, "torch"): 50.0, (*merged, "openvino"): 40.0}
    text = format_times(times)
    assert "40.0 (1.25x)" in text, "without a time before simplification, the time after it counts"
    assert "openvino: a merged path is 1.50 x as fast" in text
    assert "torch: a merged path costs 0.833 x" in text
    assert "40.0 (1.40x)" in format_times({**times, ("unet_merged", "before", "torch"): 56.0})
