"""Presets: valid files, overrides, and errors that name the file, the key and the value."""

from __future__ import annotations

from pathlib import Path

import pytest

from dod.config import ENCODER_TARGETS, UNET_TARGETS, load_preset, shipped_presets
from dod.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "preset.yaml"
    path.write_text(text)
    return path


def test_sd21_has_the_scale_of_the_paper() -> None:
    preset = load_preset("sd21")
    assert preset.size_multiple == 64 and preset.vae_factor == 8
    assert (preset.lora.rank, preset.lora.alpha, preset.lora.conditional) == (8, 8.0, "unet")
    assert (preset.step.timestep, preset.step.beta_start, preset.step.beta_end) == (999, 0.00085, 0.012)
    assert preset.base.vae.scaling_factor == 0.18215
    assert (preset.detail.blocks, preset.detail.growth) == (2, 32)
    assert len(UNET_TARGETS) == 13 and "conv_in" not in UNET_TARGETS and "conv_in" in ENCODER_TARGETS


@pytest.mark.parametrize("name", shipped_presets())
def test_every_shipped_preset_loads(name: str) -> None:
    preset = load_preset(name)
    assert preset.name == name and preset.folder.name == name
    assert preset == load_preset(preset.folder) == load_preset(preset.folder / "preset.yaml")


def test_values_are_converted_to_their_types(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "name: own\nlora: {rank: 4, alpha: 2}\nbase: {revision: null, vae: {block_out_channels: [8, 16]}}\n"
        "detail: {enabled: false}\ncheckpoint: there\n",
    )
    preset = load_preset(path)
    assert preset.lora.alpha == 2.0 and isinstance(preset.lora.alpha, float)
    assert preset.base.vae.block_out_channels == (8, 16) and preset.base.revision is None
    assert preset.detail.enabled is False and preset.checkpoint == "there"
    assert preset.size_multiple == 2 * 8  # factor 2 of a two-level VAE, four levels of the default UNet


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nrnak: 8", r"preset.yaml: unknown key 'rnak'"),
        ("name: a\ndetial: {}", r"unknown key 'detial' .*'detail'.*base, ddpm, mfm"),
        ("name: a\nlora: {rang: 8}", r"preset.yaml: lora: unknown key 'rang' .*'rank'.*alpha"),
        ("name: a\nbase: {unet: {attention_head: [1]}}", r"base.unet: unknown key .*'attention_heads'"),
        ("name: a\npostprocess: {tap: 3}", r"postprocess: unknown key 'tap' .*'taps'"),
        ("name: a\nlora: {rank: many}", r"preset.yaml: lora.rank: .*int.*'many'"),
        ("name: a\nlora: {rank: 8.5}", r"lora.rank: .*int.*8.5"),
        ("name: a\nlora: {rank: true}", r"lora.rank: .*int.*True"),
        ("name: a\nlora: {alpha: true}", r"lora.alpha: .*float.*True"),
        ("name: a\ndetail: {enabled: 1}", r"detail.enabled: .*bool.*1"),
        ("name: a\nbase: {vae: {norm_num_groups: many}}", r"base.vae.norm_num_groups: .*int.*'many'"),
        ("name: a\nconditions: haze", r"conditions: .*a list.*'haze'"),
        ("name: a\nconditions: [haze, 3]", r"conditions\[1\]: .*str.*3"),
        ("name: a\nlora: {conditional: vae}", r"lora.conditional: .*none, unet, unet\+encoder.*'vae'"),
        ("name: a\nlora: 8", r"lora: .*keys and values.*8"),
        ("name: a\npostprocess: 8", r"postprocess: .*keys and values.*8"),
        ("name: a\nlora: {rank: 0}", r"lora.rank: .*int >= 1.*0"),
        ("name: a\ndetail: {narrow: 0}", r"detail.narrow: .*>= 1.*0"),
        ("name: a\nmfm: {crops: 5}", r"mfm.crops: 5 .*square"),
        ("name: a\npostprocess: {taps: 4}", r"postprocess.taps: 4 .*odd"),
        ("name: a\npostprocess: {window: 999}", r"preset.yaml: postprocess.window: 999 .*256"),
        ("name: a\nstep: {timestep: 1000}", r"step.timestep: 1000 .*999"),
        ("name: a\nfolder: /etc", r"unknown key 'folder'"),
        ("lora: {rank: 8}", r"preset.yaml: missing key 'name'"),
        ("- name", r"keys and values.*list"),
        ("name: [a", r"not valid YAML"),
        ("name: a\n\tlora: {}", r"not valid YAML"),
    ],
)
def test_a_bad_preset_is_an_error_that_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as found:
        load_preset(write(tmp_path, text))
    assert "\n" not in str(found.value)


def test_a_file_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "preset.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_preset(tmp_path)


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'mni' .*'mini'.*mini, sd21, tiny"):
        load_preset("mni")
    with pytest.raises(ConfigError, match=r"no preset file at .*nowhere.yaml"):
        load_preset("nowhere.yaml")


def test_a_shipped_name_wins_over_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mini").mkdir()
    write(tmp_path / "mini", "name: other\n")
    monkeypatch.chdir(tmp_path)
    assert load_preset("mini").name == "mini"
    assert load_preset("./mini").name == load_preset(Path("mini")).name == "other"


def test_overrides_are_validated_like_the_file() -> None:
    preset = load_preset("tiny", {"lora.rank": 16, "base.vae.layers_per_block": 2})
    assert preset.lora.rank == 16 and preset.lora.alpha == 4 and preset.base.vae.layers_per_block == 2
    assert load_preset("tiny").lora.rank == 4
    with pytest.raises(ConfigError, match=r"lora: unknown key 'ranks' .*'rank'"):
        load_preset("tiny", {"lora.ranks": 16})
    with pytest.raises(ConfigError, match=r"preset.yaml: name.more: .*'tiny'"):
        load_preset("tiny", {"name.more": 16})


def test_locate_prefers_the_folder_of_the_preset(tmp_path: Path) -> None:
    preset = load_preset(write(tmp_path, "name: own\n"))
    (tmp_path / "base").mkdir()
    assert preset.locate("base") == str(tmp_path / "base")
    assert preset.locate("owner/name") == "owner/name"
    assert preset.locate("/absolute/path") == "/absolute/path"
    assert preset.locate(str(tmp_path / "base")) == str(tmp_path / "base")
