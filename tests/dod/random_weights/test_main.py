"""The command that writes random weights, at the size of `tiny`, and the statistics of the weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dod.checkpoint import load_model
from dod.errors import run_command
from dod.random_weights.__main__ import main
from dod.random_weights.layouts import WEIGHTS
from dod.random_weights.plan import required_bytes
from tests.dod.small_model import image, tiny

ROOT = Path(__file__).parents[3]


OPTIONS = ("--checkpoint", "tiny", "--crop", "64", "--num-images", "3", "--num-samples", "1")
FORMER = ("--preset", "tiny", "--crop", "64", "--images", "3", "--samples", "1")
"""`OPTIONS` in former spellings."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("full") / "tiny"
    command = [sys.executable, "-m", "dod.random_weights", str(out), *OPTIONS, "--dtype", "float16"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done.stdout


def test_the_command_writes_a_preset_that_loads(written: tuple[Path, str]) -> None:
    out, said = written
    assert {path.name for path in out.iterdir()} == {"base", "ddpm", "dod", "full_size.json", "preset.yaml"}
    for file in ("base/vae", "base/unet", "ddpm"):
        assert {t.dtype for t in load_file(out / file / WEIGHTS).values()} == {torch.float16}
    assert "random weights" in said.splitlines()[-1] and "restores nothing" in said
    assert any(".query." in name for name in load_file(out / "ddpm" / WEIGHTS))
    model = load_model(out)
    assert list(model.prototypes) == list(model.preset.conditions)
    record = json.loads((out / "full_size.json").read_text())
    assert record["dod"]["ddpm"]["change by LoRA"] == pytest.approx(0.3, rel=0.2)


def test_the_checkpoint_changes_images(written: tuple[Path, str]) -> None:
    """Each B and w is non-zero, and conditions differ in modulation and restored image."""
    model = load_model(written[0])
    trained = {**model.adaptation_parameters(), **model.detail_parameters()}
    assert all(bool(p.any()) for name, p in trained.items() if name.endswith("lora_B.weight") or p.ndim == 0)
    with torch.no_grad():
        modulation = model.mfm.network(torch.stack(list(model.prototypes.values())))
    assert float(modulation[:, :, 0].std(0).mean()) > 0.05 and float(modulation[:, :, 1].std(0).mean()) > 0.05
    x = image(1, 64, 64)
    with torch.no_grad():
        one, other = (model(x, m[None]) for m in modulation[:2])
    assert bool(torch.isfinite(one).all()) and not torch.equal(one, other)


def test_activations_have_a_realistic_scale(written: tuple[Path, str]) -> None:
    layers = json.loads((written[0] / "full_size.json").read_text())["layers"]
    assert set(layers) == {"vae", "unet", "ddpm"}
    for part, of_part in layers.items():
        for name, (deviation, largest) in of_part.items():
            if not name.endswith(("conv_out", "quant_conv")):
                assert 0.1 < deviation < 4 and largest < 100, (part, name)


def test_a_second_run_keeps_what_is_there(written: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = written
    for options in (OPTIONS, FORMER):
        assert run_command(main, [str(out), *options]) == 2
        assert f"{out / 'base'} exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--crop", "60"), "--crop 60: it must be a multiple of 16"),
        (("--num-samples", "0"), "--num-samples 0"),
        (("--images", "0"), "--num-images 0"),
    ],
)
def test_bad_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run_command(main, [str(tmp_path / "out"), "--checkpoint", "tiny", *arguments]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_required_bytes_is_what_is_written(written: tuple[Path, str]) -> None:
    out, _ = written
    sizes = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
    needed = required_bytes(tiny(), ["sd", "ddpm"], 2) + required_bytes(tiny(), ["dod"], 4)
    headers = 300_000
    assert needed < sizes < needed + headers
