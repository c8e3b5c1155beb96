"""A small data set tree in the published layout, of random images whose pixels identify their source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

HAZE = ("part1/0025_0.8_0.04", "part1/0025_0.85_0.2", "part2/3068_1_0.1")
PAIRS = {  # degradation: (degraded, clean) below the root
    "haze": ("Train/Dehaze/synthetic", "Train/Dehaze/original"),
    "rain": ("Train/Derain/rainy", "Train/Derain/gt"),
    "noise": ("", "Train/Denoise"),
    "blur": ("Train/Deblur/blur", "Train/Deblur/sharp"),
    "low-light": ("Train/Enhance/low", "Train/Enhance/gt"),
}


def image(seed: int, size: tuple[int, int] = (80, 64)) -> np.ndarray:
    """Return uint8 [H, W, 3] with even values, so that a degraded copy can be marked by adding one."""
    return 2 * np.random.default_rng(seed).integers(0, 127, (size[1], size[0], 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make_tree(root: Path) -> Path:
    """Write three hazy images of two clean ones (of three), two pairs of rain, blur and low light, and two for noise.

    Degraded pixels are the clean ones plus one, so that places can be compared exactly. All files are PNG, except one
    BMP for noise.
    """
    train = root / "Train"
    for number, name in enumerate(("0025", "3068", "5425")):
        save(train / "Dehaze/original" / f"{name}.png", image(number))
    for name in HAZE:
        number = ("0025", "3068").index(name.split("/")[1].split("_")[0])
        save(train / "Dehaze/synthetic" / f"{name}.png", image(number) + 1)
    for number in (1, 2):
        save(train / "Derain/gt" / f"norain-{number}.png", image(10 + number))
        save(train / "Derain/rainy" / f"rain-{number}.png", image(10 + number) + 1)
        save(train / "Deblur/sharp" / f"GOPR0372_07_00_00004{number}.png", image(20 + number))
        save(train / "Deblur/blur" / f"GOPR0372_07_00_00004{number}.png", image(20 + number) + 1)
        save(train / "Enhance/gt" / f"{number}.png", image(30 + number))
        save(train / "Enhance/low" / f"{number}.png", image(30 + number) + 1)
    save(train / "Denoise/00001.bmp", image(40))
    save(train / "Denoise/a8143.png", image(41))
    (train / "Derain/rainy/.DS_Store").write_bytes(b"\0")
    (train / "Derain/rainy/._rain-1.png").write_bytes(b"\0")
    (train / "Denoise/Thumbs.db").write_bytes(b"\0")
    return root


def make_lists(folder: Path) -> Path:
    """Write lists as in PromptIR's `data_dir`: two of the three hazy images, one rainy, one clean."""
    lines = {
        "hazy/hazy_outside.txt": f"synthetic/{HAZE[2]}.png\nsynthetic/{HAZE[0]}.png\n",
        "rainy/rainTrain.txt": "rainy/rain-2.png",
        "noisy/denoise.txt": "a8143.png\r\n\r\n",
    }
    for name, text in lines.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, newline="")
    return folder
