"""Sample images: licences, shipped files, and the command that writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from dod.data.degradations import DEGRADATIONS
from dod.data.photographs import listed_photographs
from dod.data.samples import SAMPLES, SHAREABLE, main, make_sample
from dod.errors import run_command

SHIPPED = Path(__file__).parents[3] / "docs" / "samples"


def test_one_shareable_scene_for_each_degradation() -> None:
    held_out = {photograph.name: photograph for photograph in listed_photographs("held_out")}
    assert tuple(sample.degradation for sample in SAMPLES) == DEGRADATIONS
    assert len({sample.photograph for sample in SAMPLES}) == len(SAMPLES)
    assert all(held_out[sample.photograph].licence in SHAREABLE for sample in SAMPLES)
    for sample in SAMPLES:
        left, top, right, bottom = sample.box
        assert (right - left) / (bottom - top) == pytest.approx(4 / 3, rel=0.003)


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_shipped_samples(name: str) -> None:
    degraded, clean = SHIPPED / f"{name}.png", SHIPPED / "clean" / f"{name}.png"
    assert degraded.stat().st_size < 600_000
    with Image.open(degraded) as left, Image.open(clean) as right:
        assert left.size == right.size == (512, 384) and left.mode == right.mode == "RGB"
        psnr = peak_signal_noise_ratio(np.asarray(right), np.asarray(left))
    assert 5 < psnr < 30
    assert f"`{name}.png`" in (SHIPPED / "README.md").read_text(encoding="utf-8")


def test_command_writes_all_and_repeats_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photographs, out = tmp_path / "photographs", tmp_path / "out"
    (photographs / "held_out").mkdir(parents=True)
    gradient = Image.linear_gradient("L").resize((1600, 1600)).convert("RGB")
    for sample in SAMPLES:
        gradient.save(photographs / "held_out" / f"{sample.photograph}.png")
    assert run_command(main, [str(out), "--photographs", str(photographs)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    for sample in SAMPLES:
        degraded, clean = make_sample(sample, gradient)
        with Image.open(out / f"{sample.degradation}.png") as written:
            assert np.array_equal(np.asarray(written), np.asarray(degraded))
        with Image.open(out / "clean" / f"{sample.degradation}.png") as written:
            assert np.array_equal(np.asarray(written), np.asarray(clean))
    assert (out / "README.md").read_text(encoding="utf-8") == (SHIPPED / "README.md").read_text(encoding="utf-8")


def test_missing_photograph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, [str(tmp_path / "out"), "--photographs", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "dod-train photographs" in error and "\n" not in error
    assert not (tmp_path / "out").exists(), "a failed command left files behind"
