"""The command that writes random weights, at the size of `tiny`, and the statistics of the weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dod.checkpoint import load_model
from dod.config import load_preset
from dod.errors import CheckpointError, run_command
from dod.model import base
from dod.model.adm import ADMEncoder
from dod.random_weights.__main__ import main
from dod.random_weights.base_parts import write_adm
from dod.random_weights.layouts import ADM_FILE, WEIGHTS, adm_decoder
from dod.random_weights.plan import Variant, check_plan, required_bytes, variants, write_preset
from dod.random_weights.scaling import BRANCH, deviations, fit, rescale, standardise
from tests.dod.small_model import image, normal, tiny

ROOT = Path(__file__).parents[3]
SMALL = {"model_channels": 32, "multipliers": (1, 2), "res_blocks": 1, "attention_factors": (2,), "head_channels": 16}


OPTIONS = ("--checkpoint", "tiny", "--crop", "64", "--num-images", "3", "--num-samples", "1")
FORMER = ("--preset", "tiny", "--crop", "64", "--images", "3", "--samples", "1")
"""`OPTIONS` in former spellings."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("full") / "tiny"
    command = [sys.executable, "-m", "dod.random_weights", str(out), *OPTIONS, "--dtype", "float16"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done.stdout


def test_the_command_writes_a_preset_that_loads(written: tuple[Path, str]) -> None:
    out, said = written
    assert {path.name for path in out.iterdir()} == {"base", "ddpm", "dod", "full_size.json", "preset.yaml"}
    for file in ("base/vae", "base/unet", "ddpm"):
        assert {t.dtype for t in load_file(out / file / WEIGHTS).values()} == {torch.float16}
    assert "random weights" in said.splitlines()[-1] and "restore nothing" in said
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


def test_a_full_disk_is_an_error_with_both_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_234_567_890))
    with pytest.raises(CheckpointError, match=r"3\.80 GB .*1\.23 GB"):
        check_plan(load_preset("sd21"), tmp_path / "new" / "folder", ["sd"], 4)
    check_plan(load_preset("sd21"), tmp_path / "new" / "folder", ["ddpm"], 4)


def test_required_bytes_is_what_is_written(written: tuple[Path, str]) -> None:
    out, _ = written
    sizes = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
    needed = required_bytes(tiny(), ["sd", "ddpm"], 2) + required_bytes(tiny(), ["dod"], 4)
    headers = 300_000
    assert needed < sizes < needed + headers


def test_required_bytes_at_full_size() -> None:
    preset = load_preset("sd21")
    assert required_bytes(preset, ["sd"], 4) == 4 * (865_910_724 + 83_653_863)
    assert required_bytes(preset, ["ddpm", "adm"], 2) == 2 * (113_673_219 + 552_814_086)


def test_the_checkpoint_needs_its_base(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"base.*add sd to --parts"):
        check_plan(tiny(), tmp_path, ["ddpm", "dod"], 4)
    check_plan(tiny(), tmp_path, ["ddpm"], 4)


def test_presets_of_both_ddpms(tmp_path: Path) -> None:
    places = variants(["sd", "ddpm", "adm", "dod"], tmp_path)
    assert places == [Variant("ddpm", tmp_path), Variant("adm", tmp_path / "adm")]
    (tmp_path / "adm").mkdir()
    (tmp_path / "base").mkdir()
    (tmp_path / "adm" / ADM_FILE).touch()
    for variant in places:
        write_preset("sd21", variant, checkpoint=True)
    plain, adm = load_preset(tmp_path), load_preset(tmp_path / "adm")
    assert (plain.name, plain.ddpm.layout, plain.checkpoint) == ("sd21", "diffusers", "dod")
    assert (adm.ddpm.layout, adm.checkpoint) == ("adm", "dod")
    assert Path(adm.locate(adm.base.source)).samefile(tmp_path / "base")
    assert Path(adm.locate(adm.ddpm.source)).is_file()


def test_adm_is_written_whole_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = write_adm(tiny(), tmp_path, image(2, 32, 32), torch.float16, 0, **SMALL)
    state = torch.load(tmp_path / ADM_FILE, weights_only=True)
    with torch.device("meta"):
        encoder = ADMEncoder(**SMALL).state_dict()
    assert {n: tuple(t.shape) for n, t in state.items()} == {
        **{n: tuple(t.shape) for n, t in encoder.items()},
        **adm_decoder(**SMALL),
    }
    assert {t.dtype for t in state.values()} == {torch.float16} and all(
        0.1 < d < 4 for d, _ in statistics["adm"].values()
    )
    monkeypatch.setattr(base, "ADMEncoder", lambda: ADMEncoder(**SMALL))
    loaded = base.load_adm(tmp_path / ADM_FILE)
    assert torch.equal(loaded.time_embed[0].weight, state["time_embed.0.weight"].float())


def test_rescaling_brings_every_layer_to_its_deviation() -> None:
    model = nn.Sequential()
    for name, layer in (("first", nn.Conv2d(3, 16, 3)), ("conv2", nn.Conv2d(16, 16, 3)), ("last", nn.Conv2d(16, 4, 1))):
        model.add_module(name, layer)
    x = image(2, 16, 16)
    rescale(model, lambda: model(x), torch.Generator().manual_seed(0))
    found = deviations(model, lambda: model(x))
    assert {name: deviation for name, (deviation, _) in found.items()} == {
        "first": pytest.approx(1, abs=0.05),
        "conv2": pytest.approx(BRANCH, abs=0.05),
        "last": pytest.approx(1, abs=0.05),
    }


def test_fit_is_least_squares() -> None:
    layer, truth = nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)
    features = [normal(1, 3, 12, 12, seed=i) for i in range(3)]
    with torch.no_grad():
        fit(layer, features, [truth(x) for x in features], ridge=1e-8)
    assert torch.allclose(layer.weight, truth.weight, atol=1e-4) and torch.allclose(layer.bias, truth.bias, atol=1e-4)


def test_standardise_gives_each_channel_its_mean_and_deviation() -> None:
    layer, x = nn.Conv2d(3, 2, 1), normal(4, 3, 8, 8)
    with torch.no_grad():
        standardise(layer, x, [0.0, -17.0], [5.5, 1.0])
        y = layer(x)
    assert y.mean((0, 2, 3)).tolist() == pytest.approx([0, -17], abs=1e-4)
    assert y.std((0, 2, 3)).tolist() == pytest.approx([5.5, 1.0], rel=1e-4)
