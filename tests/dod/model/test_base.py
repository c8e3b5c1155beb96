"""Frozen base: loading, identity, and errors that name the part."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dod.config import BaseConfig, Preset, load_preset
from dod.errors import CheckpointError
from dod.model.base import identity, load_base, load_prompt
from dod.model.networks import new_ddpm, new_unet, new_vae
from tests.dod.small_model import SMALLER, normal

WEIGHTS = "diffusion_pytorch_model.safetensors"


def preset_of(folder: Path, **changes: Any) -> Preset:
    """Return a small preset whose base and DDPM are in subfolders of its folder."""
    overrides = {**SMALLER, "base.source": "base", "ddpm.source": "ddpm"}
    return load_preset(folder, {**overrides, **{key.replace("__", "."): value for key, value in changes.items()}})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A preset with base and DDPM as `save_pretrained` writes them. fp16 represents their values exactly."""
    shutil.copy(load_preset("tiny").folder / "preset.yaml", tmp_path)
    preset = preset_of(tmp_path)
    torch.manual_seed(0)
    models = {
        "base/vae": new_vae(preset.base.vae),
        "base/unet": new_unet(preset.base.unet),
        "ddpm": new_ddpm(preset.ddpm),
    }
    for part, model in models.items():
        model.half().float().save_pretrained(tmp_path / part)
    save_file({"prompt": normal(1, 4, 16).half()}, tmp_path / "base" / "prompt.safetensors")
    return tmp_path


def write_scheduler(folder: Path, text: str) -> None:
    (folder / "base" / "scheduler").mkdir(exist_ok=True)
    (folder / "base" / "scheduler" / "scheduler_config.json").write_text(text)


def test_a_local_diffusers_folder_loads(folder: Path) -> None:
    parts = load_base(preset_of(folder))
    for part, model in (("vae", parts.vae), ("unet", parts.unet)):
        stored, found = load_file(folder / "base" / part / WEIGHTS), model.state_dict()
        assert stored.keys() == found.keys()
        assert all(torch.equal(stored[name], found[name]) for name in stored)
        assert not model.training and all(t.dtype == torch.float32 for t in found.values())
    stored = load_file(folder / "ddpm" / WEIGHTS)
    assert all(torch.equal(stored[name], t) for name, t in parts.h_space.state_dict().items())
    assert not any(name.startswith(("up_blocks", "conv_out")) for name in parts.h_space.state_dict())
    assert torch.equal(parts.prompt, normal(1, 4, 16).half().float())


def test_identity_does_not_depend_on_storage(folder: Path) -> None:
    parts = load_base(preset_of(folder))
    models = {"vae": parts.vae, "unet": parts.unet, "ddpm": parts.h_space}
    assert identity(models, parts.prompt) == parts.sha256
    fp16 = {part: model.half() for part, model in models.items()}
    assert identity(fp16, parts.prompt.half()) == parts.sha256
    for part in ("base/vae", "base/unet", "ddpm"):
        stored = load_file(folder / part / WEIGHTS)
        save_file({name: t.half() for name, t in stored.items()}, folder / part / WEIGHTS)
    assert load_base(preset_of(folder)).sha256 == parts.sha256


def test_identity_is_sha256_over_names_shapes_and_float32_values() -> None:
    layer = torch.nn.Linear(2, 3)
    digest = hashlib.sha256()
    for name, tensor in (
        ("prompt", torch.ones(1, 1, 2)),
        ("unet.bias", layer.bias),
        ("unet.weight", layer.weight),
    ):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().numpy().tobytes())
    assert identity({"unet": layer}, torch.ones(1, 1, 2)) == digest.hexdigest()


@pytest.mark.parametrize("part", ["base/vae", "base/unet", "ddpm", "prompt"])
def test_one_value_changes_the_identity(folder: Path, part: str) -> None:
    before = load_base(preset_of(folder)).sha256
    file = folder / "base" / "prompt.safetensors" if part == "prompt" else folder / part / WEIGHTS
    stored = load_file(file)
    name = "prompt" if part == "prompt" else next(n for n in stored if n.startswith(("encoder.", "down_blocks.")))
    stored[name].view(-1)[0] += 1
    save_file(stored, file)
    assert load_base(preset_of(folder)).sha256 != before


def test_identity_ignores_the_decoder_of_the_ddpm(folder: Path) -> None:
    before = load_base(preset_of(folder)).sha256
    stored = load_file(folder / "ddpm" / WEIGHTS)
    stored["conv_out.bias"] += 1
    save_file(stored, folder / "ddpm" / WEIGHTS)
    assert load_base(preset_of(folder)).sha256 == before


def test_v_prediction_is_refused_by_name(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"no scheduler folder.*epsilon"):
        load_base(preset_of(folder))
    write_scheduler(folder, '{"prediction_type": "epsilon"}')
    load_base(preset_of(folder))
    write_scheduler(folder, '{"prediction_type": "v_prediction"}')
    with pytest.raises(CheckpointError, match=r"v_prediction.*epsilon"):
        load_base(preset_of(folder))
    write_scheduler(folder, "{")
    with pytest.raises(CheckpointError, match=r"base/scheduler: no scheduler"):
        load_base(preset_of(folder))


def test_missing_folders_are_named_without_asking_a_hub(folder: Path) -> None:
    for key, source in (("base__source", "none"), ("base__source", "/no/such"), ("ddpm__source", "./none")):
        with pytest.raises(CheckpointError, match=rf"at {source}: .*preset tiny .*hub id"):
            load_base(preset_of(folder, **{key: source}))
    (folder / "base" / "vae" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"base/vae: no AutoencoderKL"):
        load_base(preset_of(folder))


@pytest.mark.parametrize("part", ["base/vae", "base/unet", "ddpm"])
def test_a_pickle_is_never_read(folder: Path, part: str) -> None:
    stored = load_file(folder / part / WEIGHTS)
    (folder / part / WEIGHTS).unlink()
    torch.save(stored, folder / part / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match=rf"{part}: no .*{WEIGHTS}"):
        load_base(preset_of(folder))


@pytest.mark.parametrize("part", ["base/vae", "base/unet", "ddpm"])
def test_an_incomplete_or_truncated_part_is_an_error(folder: Path, part: str) -> None:
    file = folder / part / WEIGHTS
    stored = load_file(file)
    del stored["conv_out.bias" if "conv_out.bias" in stored else "encoder.conv_out.bias"]
    save_file(stored, file)
    message = rf"{part}: .*1 weights are missing, first .*conv_out.bias"
    with pytest.raises(CheckpointError, match=message):
        load_base(preset_of(folder))
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=rf"{part}: no "):
        load_base(preset_of(folder))


def test_a_base_of_another_structure_than_the_preset_states(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"base/vae: block_out_channels .*\(8, 8\).*\(8, 16\)"):
        load_base(preset_of(folder, base__vae__block_out_channels=[8, 16]))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"text": torch.ones(1, 4, 16)}, "no tensor named prompt"),
        ({"prompt": torch.ones(1, 4, 24)}, r"\[1, 4, 24\].*\[1, tokens, 16\]"),
        ({"prompt": torch.ones(4, 16)}, r"prompt embedding .*\[4, 16\]"),
    ],
)
def test_a_prompt_that_does_not_fit(folder: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    save_file(tensors, folder / "base" / "prompt.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_base(preset_of(folder))


def test_the_text_encoder_of_a_base_encodes_the_prompt(tmp_path: Path) -> None:
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "b</w>": 3, "a": 4, "b": 5}
    tokenizer = CLIPTokenizer(vocab=words, merges=[], model_max_length=6)
    torch.manual_seed(0)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=6,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=6,
            bos_token_id=0,
            eos_token_id=1,
        )
    ).eval()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    encoder.save_pretrained(tmp_path / "text_encoder")
    found = load_prompt(str(tmp_path), BaseConfig(prompt="b a", prompt_tokens=6))
    ids = tokenizer("b a", padding="max_length", max_length=6).input_ids
    with torch.no_grad():
        expected = encoder(torch.tensor([ids])).last_hidden_state
    assert found.shape == (1, 6, 16) and torch.equal(found, expected)
    assert not torch.equal(found, load_prompt(str(tmp_path), BaseConfig(prompt="a", prompt_tokens=6)))
    with pytest.raises(CheckpointError, match=r"prompt\.safetensors.*text encoder"):
        load_prompt(str(tmp_path / "text_encoder"), BaseConfig())
