"""Removal of dense blocks: the kept ones are fitted to the sum of all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dod.checkpoint import copy_trained, load_model, read_metadata, save_checkpoint
from dod.data.dataset import PhotographCrops
from dod.errors import CheckpointError, ConfigError, run_command
from dod.extras import prune
from dod.model.detail import RRDB
from dod.model.dod import DOD
from tests.dod.small_fits import SAMPLES, change, photographed
from tests.dod.small_model import normal, randomise, snr_db, tiny


def pairs(conditions: tuple[str, ...] = ("noise", "haze"), seed: int = 0) -> PhotographCrops:
    return PhotographCrops(SAMPLES, 64, seed, conditions, 0.2, crop_candidates=1)


def strengthened(model: DOD) -> DOD:
    """Scale the detail modules so that dense blocks add about as much as their input, and return the model."""
    with torch.no_grad():
        for rrdb in rrdbs(model).values():
            for block in rrdb.blocks:
                block.convs[-1].weight.mul_(30)  # type: ignore[union-attr, operator]
    return model


def rrdbs(model: DOD) -> dict[str, RRDB]:
    return {name: each for name, each in model.decoder.detail.named_modules() if isinstance(each, RRDB)}


def whole_model(dense: int = 3) -> DOD:
    torch.manual_seed(5)
    return strengthened(randomise(DOD.from_preset(tiny(detail__dense=dense))))


@torch.no_grad()
def test_the_fit_finds_the_convolution_of_its_targets() -> None:
    torch.manual_seed(0)
    made, found, fit = nn.Conv2d(5, 3, 3, padding=1), nn.Conv2d(5, 3, 3, padding=1), prune.ConvolutionFit()
    for seed, height in enumerate((70, 33, 8)):  # more rows than `ROWS`, and fewer
        features = normal(1, 5, height, 20, seed=seed)
        fit.add(features, made(features))
    assert fit.solve(found) < 1e-6
    features = normal(2, 5, 16, 16, seed=9)
    assert snr_db(made(features), found(features)) > 90


@torch.no_grad()
def test_blocks_that_add_nothing_are_not_missed() -> None:
    whole, pruned = whole_model(), DOD.from_preset(tiny(detail__dense=2))
    for rrdb in rrdbs(whole).values():
        for parameter in rrdb.blocks[-1].parameters():
            nn.init.zeros_(parameter)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    missed = prune.prune(whole, pruned, pairs(), 8)
    assert set(missed) == set(rrdbs(pruned)) and max(missed.values()) < 1e-4
    assert [len(rrdb.blocks) for rrdb in rrdbs(pruned).values()] == [2] * len(missed)
    image = pairs(seed=7)[0][0][None]
    assert snr_db(whole(image), pruned(image)) > 60
    assert all(torch.equal(before[name], value) for name, value in whole.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("dense", [1, 2])
def test_kept_blocks_are_fitted_to_the_sum_of_all(dense: int) -> None:
    whole = whole_model()
    cut, pruned = DOD.from_preset(tiny(detail__dense=dense)), DOD.from_preset(tiny(detail__dense=dense))
    copy_trained(whole, cut)
    missed = prune.prune(whole, pruned, pairs(), 12)
    assert all(0 < share < 0.5 for share in missed.values())
    unseen = torch.stack([pairs(seed=7)[i][0] for i in range(6)])

    def details(model: DOD) -> Tensor:
        return model(unseen) - whole.decoder(whole.unet(whole.encode(unseen, (m := whole.modulation(unseen)[1]))[0], m))

    expected = details(whole)
    assert snr_db(expected, details(pruned)) > snr_db(expected, details(cut)) + 6


def test_the_command_keeps_the_number_that_the_preset_states(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*photographed(folder), "--crop", "64", "--num-samples", "6"]
    save_checkpoint(strengthened(randomise(load_model(folder))), folder / "dod", training=[{"stage": 2}])
    whole = load_model(folder)

    def run(*more: str) -> str:
        assert run_command(prune.main, [*argv, *more]) == 2
        return capsys.readouterr().err

    assert "3 dense blocks" in (text := run()) and "detail.dense = 3" in text
    change(folder, {"dense": 2})
    with pytest.raises(CheckpointError, match=r"dense is 3.* 2.*dod-train prune"):
        load_model(folder)
    assert "--num-samples 0" in run("--num-samples", "0")
    assert "--crop 65" in run("--crop", "65")
    assert run_command(prune.main, [*argv, "--overwrite"]) == 0
    assert "detail.0.body.0: 2 of 3" in capsys.readouterr().out
    pruned, metadata = load_model(folder), read_metadata(folder / "dod")
    assert metadata["dense"] == 2 and [run["stage"] for run in metadata["training"]] == [2, "prune"]
    assert set(metadata["training"][-1]["missed"]) == set(rrdbs(pruned))
    image = pairs(seed=3)[0][0][None]
    with torch.no_grad():
        assert snr_db(whole(image), pruned(image)) > 20
    change(folder, {"enabled": False})
    assert "detail.enabled" in run()
    change(folder, {"enabled": True, "dense": 0})
    with pytest.raises(ConfigError, match=r"detail\.dense: .*>= 1.*0"):
        load_model(folder)
