"""Average of the weights of two models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from dod.checkpoint import METADATA, load_model
from dod.errors import ConfigError, run_command
from dod.extras import average
from dod.model.dod import DOD
from dod.training import pretrain, stages
from tests.dod.small_model import randomise, tiny
from tests.dod.small_training import command, contents


def test_two_runs_of_stage_2_are_averaged(folder: Path) -> None:
    for part in ("vae", "unet", "ddpm"):
        assert command(pretrain.main, part, folder) == 0
    assert command(stages.main, "stage1", folder, "--dmd-weight", "0", "--rec-weight", "0", "--latent-weight", "1") == 0
    other, mean = folder / "other", folder / "mean"
    shutil.copytree(folder, other)
    assert command(stages.main, "stage2", other, "--decoder", "trained", "--learning-rate", "1e-2") == 0
    before = contents(other), contents(folder / "dod"), contents(folder / "base")
    words = ["--checkpoint", str(folder), "--other", str(other), "--out", str(mean), "--share", "0.25"]
    assert run_command(average.main, words) == 0
    assert (contents(other), contents(folder / "dod"), contents(folder / "base")) == before
    one, two, found = (load_model(each).state_dict() for each in (folder, other, mean))
    moved = [name for name in one if not torch.equal(one[name], two[name])]
    assert {name.split(".")[1] for name in moved} == {"decoder", "detail", "post_quant_conv"}
    for name, value in found.items():
        torch.testing.assert_close(value, one[name].lerp(two[name], 0.25), rtol=2e-3, atol=1e-4)  # written in float16
    run = json.loads((mean / "dod" / METADATA).read_text())["training"][-1]
    assert run["stage"] == "average" and run["share"] == 0.25
    assert [each["stage"] for each in run["other"]] == [2]


def test_models_without_a_common_start_are_refused() -> None:
    model, other = DOD.from_preset(tiny()), randomise(DOD.from_preset(tiny()))
    with pytest.raises(ConfigError, match="mfm.network"):
        average.average(model, other, 0.5)
    with pytest.raises(ConfigError, match="shape"):
        average.average(model, DOD.from_preset(tiny(lora__rank=2)), 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--other", "mini", "--share", "1.5"], "--share 1.5"), (["mini", "--share", "2"], "--share 2"), ([], "--other")],
)
def test_wrong_options_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(average.main, arguments) == 2
    assert message in capsys.readouterr().err
