"""Speed-ups of the latency benchmark."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.comparison import LatencyResult, with_speed_ups


def test_speed_ups_are_relative_to_the_fastest_pytorch_that_passed() -> None:
    ms = {"image": {"p50": 100.0}}
    reference = LatencyResult(64, 1, "auto", "pytorch_cuda", "fp32", "cuda", "", 2, 1.0, ms, 99, 99, None, None)
    fp16 = replace(reference, precision="fp16", ms={"image": {"p50": 40.0}}, passed=True)
    fast = replace(reference, backend="tensorrt", ms={"image": {"p50": 20.0}}, passed=True)
    alone = replace(fast, backend="onnxruntime_cpu", device="cpu")
    assert [each.speed_up for each in with_speed_ups([reference, fp16, fast, alone])] == [0.4, 1, 2, None]
    broken = replace(fp16, passed=False)
    assert [each.speed_up for each in with_speed_ups([reference, broken, fast])] == [1, None, 5]
