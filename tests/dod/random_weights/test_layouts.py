"""Written names and shapes, compared with the published layouts in `layouts/` (shape by key)."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file
from torch import nn

from dod.checkpoint import load_model
from dod.config import load_preset
from dod.errors import CheckpointError
from dod.model.adm import ADMEncoder
from dod.model.base import load_base, load_part
from dod.model.networks import new_ddpm, new_unet, new_vae
from dod.random_weights.layouts import PUBLISHED, WEIGHTS, adm_decoder, configuration, old_names
from tests.dod.small_model import normal, tiny

LAYOUTS = Path(__file__).parent / "layouts"
Shapes = dict[str, tuple[int, ...]]


def published(name: str) -> Shapes:
    return {key: tuple(shape) for key, shape in json.loads((LAYOUTS / f"{name}.json").read_text()).items()}


def shapes(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in old_names(model.state_dict()).items()}


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [
        ("sd21-base-unet", 686, 865_910_724),
        ("sd21-base-vae", 248, 83_653_863),
        ("ddpm-256", 450, 113_673_219),
        ("adm-256-uncond", 566, 552_814_086),
    ],
)
def test_the_data_have_the_published_counts(name: str, tensors: int, parameters: int) -> None:
    layout = published(name)
    assert (len(layout), sum(math.prod(shape) for shape in layout.values())) == (tensors, parameters)


@pytest.fixture(scope="module")
def full_size() -> dict[str, nn.Module]:
    preset = load_preset("sd21")
    with torch.device("meta"):
        return {
            "unet": new_unet(preset.base.unet),
            "vae": new_vae(preset.base.vae),
            "ddpm": new_ddpm(preset.ddpm),
        }


@pytest.mark.parametrize(("part", "name"), [("unet", "sd21-base-unet"), ("vae", "sd21-base-vae"), ("ddpm", "ddpm-256")])
def test_written_names_and_shapes_are_the_published_ones(full_size: dict[str, nn.Module], part: str, name: str) -> None:
    assert shapes(full_size[part]) == published(name)


def test_encoder_and_decoder_of_adm_have_the_published_shapes() -> None:
    with torch.device("meta"):
        assert shapes(ADMEncoder()) | adm_decoder() == published("adm-256-uncond")


@pytest.mark.parametrize("part", ["unet", "vae", "ddpm"])
def test_the_structure_of_sd21_is_the_published_configuration(full_size: dict[str, nn.Module], part: str) -> None:
    """The published file builds the model of the preset, and the written configuration equals the published file."""
    values = json.loads((PUBLISHED / f"{part}.json").read_text())
    model = full_size[part]
    assert json.loads(json.dumps(configuration(part, model.config))) == values
    with torch.device("meta"):
        read = type(model).from_config(values)
    assert shapes(read) == shapes(model)
    ignored = {"sample_size", "_use_default_values"}  # a default of pipelines, which the model does not use
    assert {k: v for k, v in read.config.items() if k not in ignored and k[0] != "_"} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in model.config.items() if k not in ignored and k[0] != "_"
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A preset with the base and the DDPM of `tiny` under the published, old names."""
    shutil.copy(load_preset("tiny").folder / "preset.yaml", tmp_path)
    preset = tiny()
    torch.manual_seed(0)
    for part, model in (
        ("base/vae", new_vae(preset.base.vae)),
        ("base/unet", new_unet(preset.base.unet)),
        ("ddpm", new_ddpm(preset.ddpm)),
    ):
        model.save_pretrained(tmp_path / part)
        state = old_names(load_file(tmp_path / part / WEIGHTS))
        save_file(state, tmp_path / part / WEIGHTS, {"format": "pt"})
    save_file({"prompt": normal(1, 4, 16)}, tmp_path / "base" / "prompt.safetensors")
    return tmp_path


SOURCES = {"base.source": "base", "ddpm.source": "ddpm"}


@pytest.mark.parametrize(("part", "blocks"), [("base/vae", 2), ("ddpm", 4), ("base/unet", 0)])
def test_old_names_load_like_the_new_ones(folder: Path, part: str, blocks: int) -> None:
    file = folder / part / WEIGHTS
    old = load_file(file)
    assert sum(name.endswith(".query.weight") for name in old) == blocks
    before = load_base(load_preset(folder, SOURCES))
    names = {"query.": "to_q.", "key.": "to_k.", "value.": "to_v.", "proj_attn.": "to_out.0."}
    new = {}
    for name, tensor in old.items():
        for theirs, ours in names.items():
            name = name.replace(f".{theirs}", f".{ours}")
        new[name] = tensor
    assert (new.keys() != old.keys()) == (blocks > 0)
    save_file(new, file, {"format": "pt"})
    after = load_base(load_preset(folder, SOURCES))
    assert after.sha256 == before.sha256
    for ours, theirs in ((after.vae, before.vae), (after.unet, before.unet), (after.h_space, before.h_space)):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_base_in_another_layout_names_what_is_missing(folder: Path) -> None:
    file = folder / "base" / "vae" / WEIGHTS
    state = {f"first_stage_model.{name}": tensor for name, tensor in load_file(file).items()}
    save_file(state, file, {"format": "pt"})
    message = r"base/vae: .*\d+ weights.* decoder\.conv_in\.bias, .*first_stage_model\.decoder\.conv_in\.bias"
    with pytest.raises(CheckpointError, match=message):
        load_base(load_preset(folder, SOURCES))
    with pytest.raises(CheckpointError, match=r"single file.*vae/ and unet/"):
        load_base(load_preset(folder, {**SOURCES, "base.source": str(file)}))


def test_an_adm_file_needs_nothing_but_its_path(folder: Path) -> None:
    """A file is read as ADM although the layout of the preset is "diffusers"."""
    file = folder / "uncond.pt"
    torch.save({"input_blocks.0.0.weight": torch.ones(1)}, file)
    with pytest.raises(CheckpointError, match=r"ADM-256 .*\d+ keys .*, .*, "):
        load_base(load_preset(folder, {**SOURCES, "ddpm.source": "uncond.pt"}))


def test_a_ddpm_with_other_channels_than_the_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    new_ddpm(tiny(ddpm__block_out_channels=[16, 16, 48]).ddpm).save_pretrained(tmp_path / "ddpm")
    with pytest.raises(CheckpointError, match=r"32 channels .* 48"):
        load_model(tiny_checkpoint, ddpm=tmp_path / "ddpm")


def test_a_misnamed_weight_is_named(folder: Path) -> None:
    """The error names the missing weight and the one with a wrong name."""
    file = folder / "ddpm" / WEIGHTS
    state = load_file(file)
    state["mid_block.attentions.0.q.weight"] = state.pop("mid_block.attentions.0.query.weight")
    save_file(state, file, {"format": "pt"})
    message = r"1 weights .*mid_block\.attentions\.0\.to_q\.weight.*mid_block\.attentions\.0\.q\.weight"
    with pytest.raises(CheckpointError, match=message):
        load_part(UNet2DModel, str(folder / "ddpm"))
