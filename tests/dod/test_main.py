"""The command that counts parameters."""

from __future__ import annotations

import runpy
import sys

import pytest

from dod.__main__ import main, parameters
from dod.model.base import load_base
from dod.model.dod import DOD


def test_sd21_has_the_scale_of_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "sd21: rank 8, conditional unet, N = 257 conditional layers"
    rows = {line[:24].strip(): int(line[24:37].replace(",", "")) for line in lines if line}
    assert rows["UNet"] == 865_910_724
    assert rows["VAE encoder"] + rows["VAE decoder"] == 83_653_863
    assert rows["prompts"] == 257 * 64
    c, p = 512 * 256 + 256 + 2 * 256, 64 * 64 + 64 + 2 * 64
    assert rows["M"] == c + p + (256 + 64) * 16 + 16
    assert rows["stage 1 trains (PLA)"] == sum(
        rows[part] for part in ("LoRA of the UNet", "LoRA of the encoder", "prompts", "M")
    )
    detail = 0
    for encoder, width in ((512, 512), (256, 512), (128, 512), (128, 256)):
        dense = sum(9 * (width + 32 * i) * out + out for i, out in enumerate((32, 32, 32, 32, width)))
        detail += encoder * width + width + 2 * width * width + width + 1 + 2 * 3 * dense
    assert rows["stage 2 trains (DEM)"] == rows["detail modules"] == detail


def test_counts_are_those_of_the_loaded_model(untrained: DOD) -> None:
    groups = parameters(untrained)
    total = sum(p.numel() for p in untrained.parameters())
    # quant_conv belongs to the encoder, post_quant_conv to the decoder: every parameter is counted once.
    assert sum(count for parts in groups.values() for count in parts.values()) == total
    plain = load_base(untrained.preset)
    assert groups["frozen"]["UNet"] == sum(p.numel() for p in plain.unet.parameters())
    assert sum(groups["stage 1 trains (PLA)"].values()) == sum(
        p.numel() for p in untrained.adaptation_parameters().values()
    )


@pytest.mark.parametrize("arguments", [["--checkpoint", "sd12"], ["--preset", "sd12"], ["sd12"]])
def test_a_wrong_preset_is_an_error_of_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """Former spellings of the option work too."""
    monkeypatch.delitem(sys.modules, "dod.__main__")
    monkeypatch.setattr(sys, "argv", ["dod", *arguments])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_module("dod", run_name="__main__")
    printed = capsys.readouterr()
    assert exit_.value.code == 2 and printed.out == "" and printed.err.count("\n") == 1
    assert "'sd12'" in printed.err and "'sd21'" in printed.err
    monkeypatch.setattr(sys, "argv", ["dod", *arguments, "--debug"])
    with pytest.raises(SystemExit):
        runpy.run_module("dod", run_name="__main__")
    assert "Traceback" in capsys.readouterr().err
