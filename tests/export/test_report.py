"""The report of a build: the parity table, `report.md`, and the images before and after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from export.ledger import CacheEntry
from export.parity.compare import compare_output, unchecked
from export.report import parity_table, report_text, write_comparison
from tests.export.parity.test_compare import of_psnr
from tests.export.test_results import MANIFEST, result


def test_the_table_shows_the_worst() -> None:
    reference, value = of_psnr(50)
    good = compare_output("a.png", "auto", "pipeline", "torch fp16", reference + 0.5, value + 0.5)
    exact = compare_output("b.png", "auto", "pipeline", "torch fp16", reference, reference)
    assert "50.0" in parity_table([exact, good]) and "FAILED" not in parity_table([exact, good])
    assert "exact" in parity_table([exact])
    bad = compare_output("c.png", "auto", "pipeline", "torch fp16", *of_psnr(44))
    text = parity_table([good, bad, exact])
    assert "44.0" in text and "FAILED" in text and "50.0" not in text and "3 images" in text
    lost = compare_output("c.png", "auto", "pipeline", "torch fp16", reference + 0.5, value * np.inf)
    assert "-inf" in parity_table([lost]) and "exact" not in parity_table([lost])


def test_paths_that_no_runtime_ran_are_listed() -> None:
    ran, in_pytorch = result("onnx fp32", 90), result("merged", 90, path="rain")
    assert unchecked([ran, in_pytorch], ("auto", "haze", "rain")) == ["haze", "rain"]
    text = parity_table([ran], paths=("auto", "haze", "rain"))
    assert "NOT CHECKED" in text and "haze, rain" in text
    assert "NOT CHECKED" not in parity_table([ran], paths=("auto",))


def test_the_report_opens_with_the_verdict() -> None:
    manifest = {
        **MANIFEST,
        "model": {"base_sha256": "b" * 64, "checkpoint_sha256": "c" * 64},
        "profile": {"size": [64, 128, 256], "batch": [1, 1, 4]},
    }
    cost = dict.fromkeys(("operators", "parameters", "multiply_adds", "bytes"), 1)
    files = {"onnx/fp32/mfm.onnx": CacheEntry({}, 5_000_000, "a" * 64, 12.5), "report/a.png": CacheEntry({}, 1, "", 0)}
    text = report_text(
        manifest, files, [result("onnx fp32", 90)], {"a.png": "report/a.png"}, {"mfm": {"before": cost, "after": cost}}
    )
    title, _, *verdict = text.splitlines()[:5]
    assert title == "# Bundle `mini`" and [line.split(":")[0] for line in verdict] == [
        "- Built",
        "- Parity",
        "- Not checked",
    ]
    assert "![a.png](report/a.png)" in text and "| onnx/fp32/mfm.onnx | 5.00 |" in text and "report/a.png |" not in text


def test_the_comparison_image(tmp_path: Path) -> None:
    degraded = np.broadcast_to(np.array([10, 20, 30], np.float32) / 127.5 - 1, (21, 18, 3))
    restored = np.zeros((1, 3, 24, 20), np.float32)
    restored[0, 0] = 2  # beyond the range
    write_comparison(degraded, restored, tmp_path / "b.png")
    pixels = np.asarray(Image.open(tmp_path / "b.png"))
    assert pixels.shape == (21, 36, 3)
    assert (pixels[:, :18] == (10, 20, 30)).all() and (pixels[:, 18:] == (255, 128, 128)).all()
