"""Gates: figures that decide whether a precision is offered, and fail no build."""

from __future__ import annotations

import pytest

from export.errors import ParityError
from export.parity.compare import check, figure, passed_gates
from export.report import parity_table
from tests.export.parity.test_compare import of_psnr, of_snr


def test_a_gate_decides_and_fails_no_build() -> None:
    missed = figure("a.png", "auto", "pipeline", "openvino bf16", *of_psnr(44))
    met = figure("b.png", "auto", "pipeline", "openvino bf16", *of_psnr(46))
    alone = figure("a.png", "auto", "encoder", "openvino bf16", *of_snr(10))
    assert not missed.passed and met.passed and alone.passed
    check([missed, met, alone])
    assert passed_gates("openvino", [met, alone]) == ["bf16"]
    assert passed_gates("openvino", [met, missed]) == passed_gates("openvino", []) == []
    assert passed_gates("onnxruntime", [met]) == []
    text = parity_table([met, missed])
    assert "missed: not offered" in text and "44.0" in text and "FAILED" not in text
    assert "not offered" not in parity_table([met])
    with pytest.raises(ParityError, match="1 of 2 figures miss their budget, first openvino fp32 of chain on a.png"):
        check([missed, figure("a.png", "auto", "pipeline", "openvino fp32", *of_snr(69))])
