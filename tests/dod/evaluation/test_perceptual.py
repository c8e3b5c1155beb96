"""Metrics of pyiqa: errors without it, calls to it, and its values where it can be imported.

pyiqa imports torchvision, which cannot be imported with a CPU build of torch, and downloads weights. The calls are
therefore tested with a package of that name whose metrics can be computed by hand, and with pyiqa if it is installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dod.errors import DataError
from dod.evaluation.metrics import Metric, psnr
from dod.evaluation.perceptual import PERCEPTUAL, open_metric

ROOT = Path(__file__).parents[3]

PACKAGE = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
__version__ = "9.8"

def create_metric(name, device):
    print("device", device, file=sys.stderr)
    print("Loading on stdout")
    if name == "maniqa":
        import timm_that_is_missing
    if name == "musiq":
        raise OSError("no network\\nmore")
    return globals()[name]

def lpips(output, truth):
    assert output.shape == (1, 3, 20, 30) and output.dtype.is_floating_point
    return (output - truth).mean()

def clipiqa(output):
    return output[:, 0].mean()

def niqe(output):
    raise AssertionError("too small")

def fid(outputs, truths, num_workers, verbose):
    means = [[np.asarray(Image.open(p)).mean() for p in sorted(Path(folder).iterdir())] for folder in (outputs, truths)]
    return 100 * len(means[0]) + np.mean(means[0]) - np.mean(means[1])
"""
CONFIGS = """
DEFAULT_CONFIGS = {
    "lpips": {"metric_opts": {"type": "LPIPS", "net": "alex", "version": "0.1"}},
    "clipiqa": {"metric_opts": {"type": "CLIPIQA"}},
    "fid": {"metric_opts": {"type": "FID"}},
    "niqe": {"metric_opts": {"type": "NIQE"}},
    "musiq": {"metric_opts": {"type": "MUSIQ"}},
    "maniqa": {"metric_opts": {"type": "MANIQA"}},
}
"""


def why_no_pyiqa() -> str | None:
    try:
        import pyiqa  # noqa: F401
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


MISSING = why_no_pyiqa()


def run(where: Path, *metrics: str, extra: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "dod.evaluation.evaluate",
        where / "outputs",
        where / "truths",
        "--json",
        where / "f.json",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*([str(extra)] if extra else []), str(ROOT)])}
    arguments = [*map(str, command), "--device", "cpu", "--metrics", *metrics]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    package = tmp_path / "packages" / "pyiqa"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PACKAGE)
    (package / "default_model_configs.py").write_text(CONFIGS)
    return package.parent


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two flat images of rain and one of haze, each with its own brightness."""
    for name, output, truth in (("rain/a", 51, 0), ("rain/b", 102, 0), ("haze/c", 255, 204)):
        for role, value in (("outputs", output), ("truths", truth)):
            path = tmp_path / role / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((20, 30, 3), value, np.uint8)).save(path)
    return tmp_path


def test_images_sets_and_settings(folders: Path, stand_in: Path) -> None:
    done = run(folders, "fid", "psnr", "lpips", "clipiqa", extra=stand_in)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folders / "f.json").read_text())
    haze, rain = found["images"][0], found["images"][1:]
    assert haze["lpips"] == pytest.approx(0.2) and haze["clipiqa"] == pytest.approx(1) and "fid" not in haze
    assert [each["lpips"] for each in rain] == pytest.approx([0.2, 0.4])
    assert found["degradations"]["haze"]["fid"] == pytest.approx(100 + 51)
    assert found["degradations"]["rain"]["fid"] == pytest.approx(200 + 76.5)
    assert found["mean"]["fid"] == pytest.approx((151 + 276.5) / 2)
    assert found["mean"]["lpips"] == pytest.approx((0.2 + 0.3) / 2)
    lpips = found["metrics"]["lpips"]
    assert lpips["options"] == {"net": "alex", "version": "0.1"} and lpips["library"] == "pyiqa 9.8"
    assert lpips["better"] == "lower" and found["metrics"]["clipiqa"]["better"] == "higher"
    assert lpips["colour"] == "RGB in 0..1, float32" and list(found["metrics"]) == ["fid", "psnr", "lpips", "clipiqa"]
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["image", "FID", "PSNR", "dB", "LPIPS", "CLIPIQA"] and lines[2].split()[1] == "-"
    assert lines[-1].split() == ["mean", "of", "all", "213.75", "12.47", "0.2500", "0.6500"]


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("musiq", ("pyiqa 9.8", "musiq: OSError: no network.", "copy /")),
        ("niqe", ("haze/c", "AssertionError: too small")),
        ("maniqa", ("maniqa", "ModuleNotFoundError", "eval-iqa")),
        ("dists", ("pyiqa 9.8", "'dists'", "eval-iqa")),
    ],
)
def test_errors_of_pyiqa(folders: Path, stand_in: Path, metric: str, words: tuple[str, ...]) -> None:
    done = run(folders, metric, extra=stand_in)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    assert all(word in errors[0] for word in words) and not (folders / "f.json").exists()


@pytest.mark.skipif(MISSING is None, reason="pyiqa is installed")
def test_without_pyiqa(folders: Path) -> None:
    done = run(folders, "psnr", "lpips")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout
    assert done.stderr.startswith("error: lpips") and "pip install -e '.[eval-iqa]'" in done.stderr


@pytest.mark.skipif(MISSING is not None, reason=f"pyiqa cannot be imported: {MISSING}")
def test_the_real_pyiqa() -> None:
    """A metric without weights agrees with this project's, and pyiqa has all metrics that the paper reports."""
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    for name, metric in PERCEPTUAL.items():
        assert DEFAULT_CONFIGS[name].get("lower_better", False) is not metric.higher_is_better
        assert (DEFAULT_CONFIGS[name]["metric_mode"] == "FR") is (metric.sees == "pair")
    rng = np.random.default_rng(0)
    output, truth = rng.integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    opened = open_metric(Metric("psnr", "PSNR", "pair", True, 2, ""))
    assert opened.of_image(output, truth) == pytest.approx(psnr(output, truth), abs=1e-3)
    assert opened.settings["library"].startswith("pyiqa 0.")
    with pytest.raises(DataError, match="psnr"):
        opened.of_image(output, truth[:20])
