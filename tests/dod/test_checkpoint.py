"""Checkpoints: what is written, what loads, and the errors for what does not match."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dod import checkpoint
from dod.checkpoint import METADATA, WEIGHTS, load_checkpoint, load_model, preset_of, save_checkpoint
from dod.config import load_preset
from dod.errors import CheckpointError, ConfigError
from dod.model.dod import DOD
from tests.dod.small_model import image, normal, randomise, snr_db, tiny


@pytest.fixture(scope="module")
def trained(preset: Any) -> DOD:
    """A randomised model with prototypes and statistics."""
    model = randomise(DOD.from_preset(preset))
    model.prototypes = {name: normal(32, seed=i) for i, name in enumerate(("rain", "haze"))}
    model.statistics = normal(33, 32)
    return model


@pytest.fixture
def folder(trained: DOD, tmp_path: Path) -> Path:
    save_checkpoint(trained, tmp_path / "saved", steps=7)
    return tmp_path / "saved"


def edit(folder: Path, **changes: Any) -> None:
    file = folder / METADATA
    metadata = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in metadata.items() if value is not None}))


def test_roundtrip(trained: DOD, untrained: DOD, folder: Path) -> None:
    model = DOD.from_preset(trained.preset)
    metadata = load_checkpoint(model, folder)
    assert metadata["steps"] == 7 and metadata["format"] == 1 and metadata["preset"] == "tiny"
    assert metadata["layers"] == trained.layers and metadata["base_sha256"] == trained.base_sha256
    with torch.no_grad():
        assert snr_db(trained(image()), model(image())) >= 100
        assert snr_db(untrained(image()), model(image())) < 60
    assert list(model.prototypes) == ["rain", "haze"] == metadata["conditions"]
    assert all(torch.equal(model.prototypes[name], value) for name, value in trained.prototypes.items())
    assert model.statistics is not None and torch.equal(model.statistics, normal(33, 32))


def test_only_trained_weights_are_written(trained: DOD, folder: Path) -> None:
    expected = {**trained.adaptation_parameters(), **trained.detail_parameters(), "prompt": trained.unet.prompt}
    stored = load_file(folder / WEIGHTS)
    assert stored.keys() == {*expected, "prototype.rain", "prototype.haze", "statistics"}
    assert all(torch.equal(stored[name], value) for name, value in expected.items())
    assert sorted(path.name for path in folder.iterdir()) == [METADATA, WEIGHTS]


def test_fp16_checkpoints_keep_prototypes_in_fp32(trained: DOD, tmp_path: Path) -> None:
    save_checkpoint(trained, tmp_path, torch.float16)
    stored = load_file(tmp_path / WEIGHTS)
    for name, value in stored.items():
        single = name.startswith("prototype.") or name == "statistics"
        assert value.dtype == (torch.float32 if single else torch.float16), name
    model = DOD.from_preset(trained.preset)
    load_checkpoint(model, tmp_path)
    loaded = model.adaptation_parameters()
    assert all(torch.equal(p.half().float(), loaded[name]) for name, p in trained.adaptation_parameters().items())


def test_another_base_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"another base model.*base_sha256.*\w{12}\.\.\."):
        load_checkpoint(DOD.from_preset(tiny(base__seed=1)), folder)
    with pytest.raises(CheckpointError, match="another base model"):
        load_checkpoint(DOD.from_preset(tiny(ddpm__seed=1)), folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora__rank": 8}, r"rank .*4.* 8"),
        ({"lora__alpha": 8}, r"alpha .*4\.0.* 8\.0"),
        ({"lora__conditional": "none"}, r"conditional .*'unet'.*'none'"),
        ({"step__timestep": 500}, r"step .*'timestep': 999.*'timestep': 500"),
        ({"detail__enabled": False}, r"detail .*True.*False"),
        (
            {"postprocess": {"taps": 5, "window": 9}},
            r"postprocess .*None.*dod-train postprocess",
        ),
        ({"lora__unet_targets": ["to_q"]}, r"\d+ conditional layers.* \d+"),
        ({"detail__growth": 3}, r"tensors missing.*first detail\.0\.body\.0"),
    ],
)
def test_other_settings_are_refused_by_name(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(DOD.from_preset(tiny(**changes)), folder)


def test_a_checkpoint_folder_states_its_postprocessing(tmp_path: Path) -> None:
    save_checkpoint(load_model("mini"), tmp_path)
    preset, found = preset_of(tmp_path)
    assert found == tmp_path and preset.detail == load_preset("mini").detail
    assert preset.postprocess == load_preset("mini").postprocess is not None
    metadata = json.loads((tmp_path / METADATA).read_text())
    (tmp_path / METADATA).write_text(json.dumps({**metadata, "postprocess": None}))
    assert preset_of(tmp_path)[0].postprocess is None
    with pytest.raises(CheckpointError, match=r"first (gate|postprocess)\."):
        load_model(tmp_path)
    save_checkpoint(DOD.from_preset(load_preset("mini", {"postprocess": None})), tmp_path)
    before = json.loads((tmp_path / METADATA).read_text())
    del before["postprocess"]
    (tmp_path / METADATA).write_text(json.dumps(before))
    assert load_model(tmp_path).gate is None, "older checkpoints have none and do not state it"


def test_layers_in_another_order_are_refused(folder: Path, untrained: DOD) -> None:
    edit(folder, layers=untrained.layers[::-1])
    with pytest.raises(CheckpointError, match="conditional layers"):
        load_checkpoint(untrained, folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 2}', "format 2 .*update dod-toolkit"),
        ('{"format": "new"}', "not the metadata"),
        ('{"layers": []}', "not the metadata"),
        ("[]", "not the metadata"),
        ("{", "not the metadata"),
    ],
)
def test_foreign_metadata_is_refused(folder: Path, untrained: DOD, text: str, message: str) -> None:
    (folder / METADATA).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(untrained, folder)


@pytest.mark.parametrize("key", ["base_sha256", "rank", "alpha", "conditional", "detail", "layers"])
def test_metadata_without_a_key_is_refused(folder: Path, untrained: DOD, key: str) -> None:
    edit(folder, **{key: None})
    with pytest.raises(CheckpointError, match=rf"{key}|conditional layers"):
        load_checkpoint(untrained, folder)


@pytest.mark.parametrize("name", ["unet.conv_out.lora_A.weight", "modulation.prompts", "prompt", "prototype.haze"])
def test_a_missing_tensor_is_named_and_nothing_is_loaded(folder: Path, trained: DOD, name: str) -> None:
    stored = load_file(folder / WEIGHTS)
    del stored[name]
    save_file(stored, folder / WEIGHTS)
    model = DOD.from_preset(trained.preset)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"1 tensors .*first {name}"):
        load_checkpoint(model, folder)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.prototypes == {} and model.statistics is None


def test_an_extra_tensor_is_named(folder: Path, untrained: DOD) -> None:
    save_file({**load_file(folder / WEIGHTS), "more": torch.ones(1)}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="first more"):
        load_checkpoint(untrained, folder)


@pytest.mark.parametrize("size", [0, 5, 1000, -1])
def test_a_truncated_file_is_an_error(folder: Path, untrained: DOD, size: int) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS}: not a readable"):
        load_checkpoint(untrained, folder)


def test_missing_files_are_named(folder: Path, untrained: DOD) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=rf"no weights at .*{WEIGHTS}"):
        load_checkpoint(untrained, folder)
    with pytest.raises(CheckpointError, match=rf"nowhere: {METADATA} is missing"):
        load_checkpoint(untrained, folder / "nowhere")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("failing", ["weights", "metadata"])
def test_a_failed_write_keeps_the_old_checkpoint(
    trained: DOD, untrained: DOD, folder: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    before = contents(folder)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    facts: dict[str, Any] = {}
    if failing == "weights":
        monkeypatch.setattr(checkpoint, "write_safetensors", fail)
    else:
        facts["more"] = object()  # JSON cannot hold it
    with pytest.raises((OSError, TypeError)):
        save_checkpoint(untrained, folder, **facts)
    assert contents(folder) == before
    load_checkpoint(DOD.from_preset(trained.preset), folder)


def test_a_full_disk_is_a_checkpoint_error(trained: DOD, untrained: DOD, folder: Path) -> None:
    resource = pytest.importorskip("resource")
    before, limits = contents(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=rf"{WEIGHTS}: .*written"):
            save_checkpoint(untrained, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert contents(folder) == before


def test_load_model_of_a_checkpoint_uses_its_settings(tmp_path: Path) -> None:
    others = {"lora__rank": 8, "lora__alpha": 2, "lora__conditional": "none", "detail__enabled": False}
    model = randomise(DOD.from_preset(tiny(**others, step__timestep=500, mfm__crops=1)))
    save_checkpoint(model, tmp_path)
    loaded = load_model(tmp_path)
    for part in ("lora", "detail", "step", "mfm"):
        assert getattr(loaded.preset, part) == getattr(model.preset, part)
    with torch.no_grad():
        assert snr_db(model(image()), loaded(image())) >= 100


def test_load_model_of_a_preset_loads_the_checkpoint_it_names(trained: DOD, folder: Path) -> None:
    text = (load_preset("tiny").folder / "preset.yaml").read_text()
    file = folder.parent / "preset.yaml"
    file.write_text(f"{text}\ncheckpoint: saved\n")
    with torch.no_grad():
        for source in (file, file.parent, str(file)):
            assert snr_db(trained(image()), load_model(source)(image())) >= 100
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match=rf"no checkpoint at {folder}"):
        load_model(file)


def test_a_checkpoint_of_a_preset_that_is_not_shipped_says_what_to_give(folder: Path) -> None:
    edit(folder, preset="mine")
    with pytest.raises(CheckpointError, match="'mine'.*give the folder of that preset"):
        load_model(folder)


def test_more_crops_than_in_training_are_accepted(trained: DOD, folder: Path) -> None:
    model = DOD.from_preset(tiny(mfm__crops=16))
    load_checkpoint(model, folder)
    assert model.preset.mfm.crops == 16


def test_load_model_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"dod\.json.*preset\.yaml"):
        load_model(tmp_path)
    with pytest.raises(ConfigError, match="'tinny'.*'tiny'"):
        load_model("tinny")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert load_model("tiny").preset.name == "tiny"


def test_a_base_named_by_the_caller_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="at mine"):
        load_model("tiny", base="mine")
    (tmp_path / "mine").mkdir()
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/mine/vae: no AutoencoderKL"):
        load_model("tiny", base="mine")
