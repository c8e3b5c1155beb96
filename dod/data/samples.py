"""The sample images of `docs/samples`: crops of held-out photographs that may be shared, each degraded in one way.

`python -m dod.data.samples [OUT] --photographs FOLDER`, where FOLDER is what `python -m dod.data.photographs` wrote,
writes `OUT/<degradation>.png`, `OUT/clean/<degradation>.png` and `OUT/README.md`, the same pixels each time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dod.data.degradations import degrade, rng_for
from dod.data.kernels import motion_kernel
from dod.data.photographs import Photograph, listed_photographs
from dod.errors import DataError, run_command

__all__ = ["SAMPLES", "SHAREABLE", "Sample", "make_sample", "write_samples"]

SIZE = (512, 384)
SHAREABLE: Mapping[str, str] = {
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
}


@dataclass(frozen=True)
class Sample:
    """`box`: the 4:3 crop (left, top, right, bottom) of the prepared photograph, reduced to 512x384."""

    degradation: str
    photograph: str
    box: tuple[int, int, int, int]
    change: str
    seed: int = 0
    fixed: Mapping[str, Any] = field(default_factory=dict)


SAMPLES: tuple[Sample, ...] = (
    Sample(
        "haze",
        "picos_de_europa",
        (0, 0, 1600, 1200),
        "synthetic haze added",
        seed=8,
        fixed={"beta": 1.5, "airlight": 0.88},
    ),
    Sample(
        "rain",
        "dogs",
        (33, 340, 1065, 1114),
        "synthetic rain added",
        fixed={"angle": -14.0, "length": 42.0, "width": 1.5, "density": 3.2, "strength": 0.55, "veil": 0.03},
    ),
    Sample("noise", "brushes", (0, 25, 1364, 1048), "Gaussian noise of sigma 25 added", fixed={"sigma": 25.0}),
    Sample("blur", "fig", (160, 0, 1600, 1080), "motion blur added", fixed={"kernel": motion_kernel(11, 25, 0.1)}),
    Sample(
        "low-light",
        "wine",
        (0, 180, 1068, 981),
        "darkened, with sensor noise",
        fixed={"exposure": 0.26, "gamma": 1.15, "shot": 0.0006, "read": 0.003},
    ),
)


def make_sample(sample: Sample, photograph: Image.Image) -> tuple[Image.Image, Image.Image]:
    """(degraded, clean), both RGB 512x384, from the prepared photograph."""
    clean = photograph.convert("RGB").resize(SIZE, Image.Resampling.LANCZOS, box=sample.box)
    image = np.asarray(clean, dtype=np.float32) / np.float32(255)
    rng = rng_for(sample.photograph, sample.degradation, sample.seed)
    degraded, _ = degrade(image, sample.degradation, rng, **sample.fixed)
    return Image.fromarray(np.rint(degraded * 255).astype(np.uint8)), clean


def write_samples(out: Path, photographs: Path) -> list[Path]:
    """Write the samples, their clean versions and the README to `out`; returns the paths of the samples.

    Raises DataError where a photograph is missing, or its licence does not allow its crop to be shared.
    """
    sources = {photograph.name: photograph for photograph in listed_photographs("held_out")}
    images = {}
    for sample in SAMPLES:
        source = sources[sample.photograph]
        if source.licence not in SHAREABLE:
            raise DataError(f"{source.name} is under {source.licence}: samples need one of {', '.join(SHAREABLE)}")
        path = source.path(photographs)
        if not path.is_file():
            raise DataError(f"no photograph {path}: run `python -m dod.data.photographs {photographs}` first")
        with Image.open(path) as photograph:
            images[out / f"{sample.degradation}.png"] = make_sample(sample, photograph)

    (out / "clean").mkdir(parents=True, exist_ok=True)
    for path, (degraded, clean) in images.items():
        degraded.save(path, optimize=True)
        clean.save(out / "clean" / path.name, optimize=True)
    (out / "README.md").write_text(_readme(sources), encoding="utf-8")
    return list(images)


def _readme(sources: Mapping[str, Photograph]) -> str:
    rows = []
    for sample in SAMPLES:
        source = sources[sample.photograph]
        image = f"`{Path(source.file).name}`"
        licence = f"[{source.licence}]({SHAREABLE[source.licence]})"
        rows.append(f"| `{sample.degradation}.png` | {image} | {source.author} | {licence} | {sample.change} |")
    return "\n".join(
        [
            "# Sample images",
            "",
            "Five photographs that no model of this repository was trained on, each degraded in one way; `clean/` has",
            f"them as they were. All come from the Debian package `{source.package}`, cropped and reduced to",
            f"{SIZE[0]}x{SIZE[1]} px, and stay under their authors' licences.",
            "",
            "| sample | image | author | licence | change, beside crop and reduction |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "`python -m dod.data.photographs photographs` and `python -m dod.data.samples --photographs photographs`",
            "make them again.",
            "",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dod.data.samples", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", default=Path("docs/samples"), help="default: %(default)s")
    parser.add_argument("--photographs", type=Path, required=True, help="what `python -m dod.data.photographs` wrote")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    for path in write_samples(arguments.out, arguments.photographs):
        print(f"{path}  {path.stat().st_size / 1000:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
