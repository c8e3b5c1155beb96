"""Shared by all tests: the `gpu` marker, and a bundle of the `tiny` preset that the real command builds once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from PIL import Image

from export.engines.targets import gpu_unavailable_reason

NO_GPU = gpu_unavailable_reason()
ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "docs" / "samples"
SIZES = ("--min", "64", "--opt", "128", "--max", "256")
CONDITIONS = ("noise", "haze")

# Processes that tests start import this checkout, even if dod_runtime is installed from elsewhere.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), str(ROOT / "runtime"), *filter(None, [os.environ.get("PYTHONPATH")])]
)

# A shell without job control starts background jobs with SIGINT ignored, and children inherit it. The tests of Ctrl-C
# would then wait for processes that ignore the signal.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline for examples of hypothesis: several test processes run at once, so times depend on the load.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_report_header() -> str:
    return f"gpu tests: skipped ({NO_GPU})" if NO_GPU else "gpu tests: run"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if NO_GPU and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=NO_GPU))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of the `tiny` preset with random adaptation, detail modules and prototypes that change the output."""
    import torch

    from dod.checkpoint import save_checkpoint
    from dod.model.dod import DOD
    from tests.dod.small_model import randomise, tiny

    model = randomise(DOD.from_preset(tiny()), strength=0.02)
    generator = torch.Generator().manual_seed(1)
    channels = model.mfm.h_space.channels
    model.prototypes = {name: torch.randn(channels, generator=generator) for name in model.preset.conditions}
    model.statistics = torch.cat([torch.zeros(1, channels), torch.eye(channels)])
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save_checkpoint(model, folder)
    return folder


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with crops of two sample images, small enough for the tiny bundle."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("noise.png", "haze.png"):
        with Image.open(SAMPLES / name) as image:
            image.crop((100, 60, 100 + 200, 60 + 136)).save(folder / name)
    return folder


@pytest.fixture(scope="session")
def tiny_build(
    tiny_checkpoint: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str], list[str]]:
    """(bundle, finished command, arguments) of a build with fp32 and fp16, two conditions and three targets."""
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    targets = ("--targets", "onnxruntime", "openvino", "tensorrt_rtx")
    arguments = [str(tiny_checkpoint), "--out", str(out), *targets, *SIZES]
    arguments += ["--conditions", *CONDITIONS, "--samples", str(photographs)]
    done = build_engines(*arguments, where=out.parent)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return out, done, arguments


@pytest.fixture(scope="session")
def tiny_bundle(tiny_build: tuple[Path, subprocess.CompletedProcess[str], list[str]]) -> Path:
    """Bundle of `tiny_build`; tests that change it take a copy."""
    return tiny_build[0]


def build_engines(*arguments: str, where: Path) -> subprocess.CompletedProcess[str]:
    """Run the export command in a process of its own, outside the checkout."""
    command = [sys.executable, str(ROOT / "export" / "build_engines.py"), *arguments]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=1800)
