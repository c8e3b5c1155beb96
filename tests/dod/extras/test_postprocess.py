"""The command that fits the post-processing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dod.checkpoint import load_model, read_metadata
from dod.data.dataset import PhotographCrops
from dod.errors import CheckpointError, run_command
from dod.extras import postprocess
from tests.dod.small_fits import POSTPROCESS, change, photographed


@pytest.mark.slow
def test_the_command_fits_gate_and_kernel(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = photographed(folder)

    def refused(*more: str) -> str:
        assert run_command(postprocess.main, [*argv, *more]) == 2
        return capsys.readouterr().err

    assert "postprocess" in refused()
    change(folder, postprocess=POSTPROCESS, conditions=["blur"])
    assert "(blur)" in refused()
    change(folder, conditions=["low-light", "noise", "blur"])
    assert "--crop 101" in refused("--crop", "101")
    assert "--num-samples 3" in refused("--num-samples", "3")
    assert "--num-pairs 3" in refused("--pairs", "3")
    with pytest.raises(CheckpointError, match="dod-train postprocess"):
        load_model(folder)
    fit = ["--crop", "192", "--num-samples", "200", "--num-pairs", "240", "--steps", "300", "--save-every", "300"]
    assert run_command(postprocess.main, [*argv, *fit, "--batch-size", "64"]) == 0
    printed = capsys.readouterr().out
    assert "dB on blurred samples" in printed and "share" in printed
    assert [each["stage"] for each in read_metadata(folder / "dod")["training"]] == ["postprocess"]
    model: Any = load_model(folder)
    shares: dict[str, list[float]] = {}
    gains = []
    for degradation in ("blur", "noise", "low-light"):
        pairs = PhotographCrops(folder / "photographs", 192, 99, (degradation,), 0.0, crop_candidates=1)
        for degraded, clean, _ in (pairs[i] for i in range(8)):
            with torch.no_grad():
                crops = model.crops(degraded[None])
                share, mix = model.gate(crops, model.mfm.condition(crops))
                sharpened = model.postprocess(0 * degraded[None], degraded[None], torch.ones(1, 1), mix)[0]
            shares.setdefault(degradation, []).append(share.item())
            if degradation == "blur":
                before, after = ((clean - each).square().mean().item() for each in (degraded, sharpened))
                gains.append(10 * np.log10(before / after))
    assert np.mean(shares["blur"]) > 0.7 and np.mean(shares["noise"] + shares["low-light"]) < 0.3
    assert np.mean(gains) > 0.1
    assert not list((folder / "dod").glob(".*"))
