from __future__ import annotations

from pathlib import Path

import pytest

from dod.config import ENCODER_TARGETS, UNET_TARGETS, load_preset, shipped_presets
from dod.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "preset.yaml"
    path.write_text(text)
    return path


def test_sd21_has_the_papers_scale() -> None:
    preset = load_preset("sd21")
    assert preset.size_multiple == 64 and preset.vae_factor == 8
    assert (preset.lora.rank, preset.lora.alpha, preset.lora.conditional) == (8, 8.0, "unet")
    assert (preset.step.timestep, preset.step.beta_start, preset.step.beta_end) == (999, 0.00085, 0.012)
    assert preset.base.vae.scaling_factor == 0.18215
    assert (preset.detail.blocks, preset.detail.growth) == (2, 32)
    assert len(UNET_TARGETS) == 13 and "conv_in" not in UNET_TARGETS and "conv_in" in ENCODER_TARGETS


@pytest.mark.parametrize("name", shipped_presets())
def test_every_shipped_preset_reads(name: str) -> None:
    preset = load_preset(name)
    assert preset.name == name and preset.folder.name == name
    assert preset == load_preset(preset.folder) == load_preset(preset.folder / "preset.yaml")


def test_values_arrive_as_their_kind(tmp_path: Path) -> None:
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
        ("name: a\ndetial: {}", r"unknown key 'detial'; did you mean 'detail'"),
        ("name: a\nlora: {rang: 8}", r"preset.yaml: lora: unknown key 'rang'; did you mean 'rank'"),
        ("name: a\nbase: {unet: {attention_head: [1]}}", r"base: unet: unknown key .*did you mean 'attention_heads'"),
        ("name: a\nlora: {rank: many}", r"lora: rank: expected int, found 'many'"),
        ("name: a\nlora: {rank: 8.5}", r"lora: rank: expected int, found 8.5"),
        ("name: a\nlora: {rank: true}", r"lora: rank: expected int, found True"),
        ("name: a\nlora: {alpha: true}", r"lora: alpha: expected float, found True"),
        ("name: a\ndetail: {enabled: 1}", r"detail: enabled: expected bool, found 1"),
        ("name: a\nconditions: haze", r"conditions: expected a list, found 'haze'"),
        ("name: a\nconditions: [haze, 3]", r"conditions: expected str, found 3"),
        ("name: a\nlora: {conditional: vae}", r"lora: conditional: 'vae' is not one of none, unet, unet\+encoder"),
        ("name: a\nlora: 8", r"lora: expected keys and values, found 8"),
        ("name: a\nlora: {rank: 0}", r"lora: rank: 0 is not at least 1"),
        ("name: a\ndetail: {narrow: 0}", r"detail: narrow: 0 is not at least 1"),
        ("name: a\nmfm: {crops: 5}", r"mfm: crops: 5 is not a square number"),
        ("name: a\nstep: {timestep: 1000}", r"step: timestep: 1000 is not one of 0 to 999"),
        ("name: a\nfolder: /etc", r"unknown key 'folder'"),
        ("lora: {rank: 8}", r"missing key 'name'"),
        ("- name", r"expected keys and values, found list"),
        ("name: [a", r"not valid YAML"),
        ("name: a\n\tlora: {}", r"not valid YAML"),
    ],
)
def test_bad_preset_is_an_error_that_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as found:
        load_preset(write(tmp_path, text))
    assert "\n" not in str(found.value)


def test_a_file_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "preset.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_preset(tmp_path)


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no preset 'mni'; shipped are mini, sd21, tiny; did you mean 'mini'"):
        load_preset("mni")
    with pytest.raises(ConfigError, match=r"no preset file at .*nowhere.yaml"):
        load_preset("nowhere.yaml")


def test_a_shipped_name_is_not_a_folder_that_happens_to_be_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mini").mkdir()
    write(tmp_path / "mini", "name: other\n")
    monkeypatch.chdir(tmp_path)
    assert load_preset("mini").name == "mini"
    assert load_preset("./mini").name == load_preset(Path("mini")).name == "other"


def test_overrides_are_checked_like_the_file() -> None:
    preset = load_preset("tiny", {"lora.rank": 16, "base.vae.layers_per_block": 2})
    assert preset.lora.rank == 16 and preset.lora.alpha == 4 and preset.base.vae.layers_per_block == 2
    assert load_preset("tiny").lora.rank == 4
    with pytest.raises(ConfigError, match=r"lora: unknown key 'ranks'; did you mean 'rank'"):
        load_preset("tiny", {"lora.ranks": 16})
    with pytest.raises(ConfigError, match=r"name.more: name holds 'tiny', not keys and values"):
        load_preset("tiny", {"name.more": 16})


def test_locate_looks_beside_the_preset_first(tmp_path: Path) -> None:
    preset = load_preset(write(tmp_path, "name: own\n"))
    (tmp_path / "base").mkdir()
    assert preset.locate("base") == str(tmp_path / "base")
    assert preset.locate("owner/name") == "owner/name"
    assert preset.locate("/absolute/path") == "/absolute/path"
    assert preset.locate(str(tmp_path / "base")) == str(tmp_path / "base")
