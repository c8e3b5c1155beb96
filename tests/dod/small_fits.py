"""A small model and photographs, for the commands of `dod.extras`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from dod.checkpoint import load_model, save_checkpoint
from dod.model.dod import DOD

SAMPLES = Path(__file__).parents[2] / "docs" / "samples" / "clean"
POSTPROCESS = {"filters": 4, "taps": 9, "window": 15, "width": 32}


def photographed(folder: Path) -> list[str]:
    """Give the fixture `folder` photographs and a checkpoint, and return the options that name them."""
    shutil.rmtree(folder / "photographs")
    (folder / "photographs").mkdir()
    for path in sorted(SAMPLES.glob("*.jpg")) + sorted(SAMPLES.glob("*.png")):
        Image.open(path).convert("RGB").save(folder / "photographs" / f"{path.stem}.png")
    preset = yaml.safe_load((folder / "preset.yaml").read_text())
    preset["base"]["source"] = preset["ddpm"]["source"] = "random"
    (folder / "preset.yaml").write_text(yaml.safe_dump({k: v for k, v in preset.items() if k != "checkpoint"}))
    save_checkpoint(DOD.from_preset(load_model(folder).preset), folder / "dod")
    change(folder, checkpoint="dod")
    return [
        "--photographs",
        str(folder / "photographs"),
        "--checkpoint",
        str(folder),
        "--workers",
        "0",
        "--crop-candidates",
        "1",
    ]


def change(folder: Path, detail: dict[str, Any] | None = None, **changes: Any) -> None:
    """Set keys of the preset in a folder, and of its `detail`."""
    preset = yaml.safe_load((folder / "preset.yaml").read_text())
    preset["detail"] = preset.get("detail", {}) | (detail or {})
    (folder / "preset.yaml").write_text(yaml.safe_dump(preset | changes))
