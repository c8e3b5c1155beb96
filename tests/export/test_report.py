"""What is written of a proof: the figures' file, the table, the comparison images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from export.parity.compare import compare_output, unchecked
from export.report import parity_table, read_figures, rows, unchecked_rows, write_comparison, write_figures
from tests.export.parity.test_compare import of_psnr


def test_figures_survive_the_file(tmp_path: Path) -> None:
    reference, value = of_psnr(50)
    figures = [
        compare_output("a.png", "auto", "pipeline", "torch fp16", reference + 0.5, value + 0.5),
        compare_output("a.png", "auto", "pipeline", "onnx fp32", reference, reference),
        compare_output("a.png", "auto", "encoder", "onnx fp32", reference, reference),
        compare_output("b.png", "auto", "pipeline", "torch fp16", reference, value * np.inf),
    ]
    write_figures(figures, tmp_path / "parity.json")
    assert read_figures(tmp_path / "parity.json") == figures
    json.dumps(rows(figures[:3]), allow_nan=False)


def test_the_table_shows_the_worst() -> None:
    reference, value = of_psnr(50)
    good = compare_output("a.png", "auto", "pipeline", "torch fp16", reference + 0.5, value + 0.5)
    exact = compare_output("b.png", "auto", "pipeline", "torch fp16", reference, reference)
    assert "50.0" in parity_table([exact, good]) and "FAILED" not in parity_table([exact, good])
    assert "exact" in parity_table([exact])
    bad = compare_output("c.png", "auto", "pipeline", "torch fp16", *of_psnr(44))
    text = parity_table([good, bad, exact])
    assert "44.0" in text and "FAILED" in text and "50.0" not in text and "worst of 3 photographs" in text
    lost = compare_output("c.png", "auto", "pipeline", "torch fp16", reference + 0.5, value * np.inf)
    assert "-inf" in parity_table([lost]) and "exact" not in parity_table([lost])


def test_paths_that_no_runtime_ran_are_listed() -> None:
    reference, value = of_psnr(50)
    ran = compare_output("a.png", "auto", "pipeline", "onnx fp32", reference + 0.5, value + 0.5)
    in_pytorch = compare_output("a.png", "rain", "pipeline", "merged", reference + 0.5, value + 0.5)
    alone = compare_output("a.png", "rain", "unet_merged", "onnx fp32", reference + 0.5, value + 0.5)
    paths = ("auto", "haze", "rain")
    assert unchecked([ran, in_pytorch, alone], paths) == ["haze", "rain"]
    assert unchecked([ran, replace(ran, path="haze"), replace(ran, path="rain")], paths) == []
    text = parity_table([ran], paths=paths)
    assert "NOT CHECKED" in text and "haze, rain" in text
    assert "NOT CHECKED" not in parity_table([ran], paths=("auto",))
    (row,) = unchecked_rows([ran], ("auto", "haze"))
    assert row["path"] == "haze" and row["passed"] is None and row.keys() == rows([ran])[0].keys()


def test_the_comparison_image(tmp_path: Path) -> None:
    degraded = np.broadcast_to(np.array([10, 20, 30], np.float32) / 127.5 - 1, (21, 18, 3))
    restored = np.zeros((1, 3, 24, 20), np.float32)
    restored[0, 0] = 2  # beyond the range
    write_comparison(degraded, restored, tmp_path / "b.png")
    pixels = np.asarray(Image.open(tmp_path / "b.png"))
    assert pixels.shape == (21, 36, 3)
    assert (pixels[:, :18] == (10, 20, 30)).all() and (pixels[:, 18:] == (255, 128, 128)).all()
