"""Written parts; `test_main` covers Stable Diffusion and the DDPM."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dod.model import base
from dod.model.adm import ADMEncoder
from dod.random_weights.base_parts import write_adm
from dod.random_weights.layouts import ADM_FILE, adm_decoder
from tests.dod.small_model import image, tiny

SMALL = {"model_channels": 32, "multipliers": (1, 2), "res_blocks": 1, "attention_factors": (2,), "head_channels": 16}


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
