"""Value ranges, correct by hand."""

from __future__ import annotations

import pytest
import torch

from export.precision.ranges import ValueRange


def test_the_range_of_a_result_by_hand() -> None:
    span = ValueRange(("a",))
    span.add(torch.tensor([0.0, -8.0, 1e-5, 1e-8]))
    assert span.largest == 8 and span.headroom == pytest.approx(13, abs=1e-3)
    assert span.rms == pytest.approx(4)
    assert span.share(span.subnormal) == pytest.approx(2 / 3) and span.share(span.flushed) == pytest.approx(1 / 3)
