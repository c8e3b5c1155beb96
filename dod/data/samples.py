"""Sample images of `docs/samples`: crops of held-out photographs with a shareable license, each with one degradation.

`dod-train samples [OUT] --photographs FOLDER`, where FOLDER was written by `dod-train photographs`, writes
`OUT/<degradation>.png`, `OUT/clean/<degradation>.png` and `OUT/README.md`. The pixels are the same each time.
"""

from __future__ import annotations

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
from dod_runtime.console import Parser

__all__ = ["SAMPLES", "SHAREABLE", "SampleImage", "main", "make_sample", "parser", "write_samples"]

SIZE = (512, 384)
"""Width and height of the samples in px."""
SHAREABLE: Mapping[str, str] = {
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
}
"""Licenses under which a sample may be shared, and their texts."""


@dataclass(frozen=True)
class SampleImage:
    """A crop of a photograph and the degradation that is applied to it.

    Attributes:
        degradation: name of the degradation.
        photograph: name of the photograph.
        box: 4:3 crop (left, top, right, bottom) of the prepared photograph in px, reduced to 512x384.
        change: description of the change, as the license demands.
        seed: seed of the degradation.
        fixed: parameters of the degradation that are not drawn.
    """

    degradation: str
    photograph: str
    box: tuple[int, int, int, int]
    change: str
    seed: int = 0
    fixed: Mapping[str, Any] = field(default_factory=dict)


SAMPLES: tuple[SampleImage, ...] = (
    SampleImage(
        "haze",
        "picos_de_europa",
        (0, 0, 1600, 1200),
        "synthetic haze added",
        seed=8,
        fixed={"beta": 1.5, "airlight": 0.88},
    ),
    SampleImage(
        "rain",
        "dogs",
        (33, 340, 1065, 1114),
        "synthetic rain added",
        fixed={"angle": -14.0, "length": 42.0, "width": 1.5, "density": 3.2, "strength": 0.55, "veil": 0.03},
    ),
    SampleImage("noise", "brushes", (0, 25, 1364, 1048), "Gaussian noise of sigma 25 added", fixed={"sigma": 25.0}),
    SampleImage("blur", "fig", (160, 0, 1600, 1080), "motion blur added", fixed={"kernel": motion_kernel(11, 25, 0.1)}),
    SampleImage(
        "low-light",
        "wine",
        (0, 180, 1068, 981),
        "darkened, with sensor noise",
        fixed={"exposure": 0.26, "gamma": 1.15, "shot": 0.0006, "read": 0.003},
    ),
)
"""The sample images, one for each degradation."""


def make_sample(sample: SampleImage, photograph: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Return (degraded, clean), both RGB 512x384.

    Args:
        sample: description of the sample.
        photograph: the prepared photograph.

    Returns:
        The degraded and the clean image.
    """
    clean = photograph.convert("RGB").resize(SIZE, Image.Resampling.LANCZOS, box=sample.box)
    image = np.asarray(clean, dtype=np.float32) / np.float32(255)
    rng = rng_for(sample.photograph, sample.degradation, sample.seed)
    degraded, _ = degrade(image, sample.degradation, rng, **sample.fixed)
    return Image.fromarray(np.rint(degraded * 255).astype(np.uint8)), clean


def write_samples(out: Path, photographs: Path) -> list[Path]:
    """Write the samples, their clean versions and a README.

    Args:
        out: folder to write to.
        photographs: folder that `dod-train photographs` wrote.

    Returns:
        Paths of the samples.

    Raises:
        DataError: a photograph is missing, or its license does not allow sharing.
    """
    sources = {photograph.name: photograph for photograph in listed_photographs("held_out")}
    images = {}
    for sample in SAMPLES:
        source = sources[sample.photograph]
        if source.licence not in SHAREABLE:
            raise DataError(f"{source.name} is under {source.licence}: samples need one of {', '.join(SHAREABLE)}")
        path = source.path(photographs)
        if not path.is_file():
            raise DataError(f"no photograph {path}: run `dod-train photographs {photographs}` first")
        with Image.open(path) as photograph:
            images[out / f"{sample.degradation}.png"] = make_sample(sample, photograph)

    (out / "clean").mkdir(parents=True, exist_ok=True)
    for path, (degraded, clean) in images.items():
        degraded.save(path, optimize=True)
        clean.save(out / "clean" / path.name, optimize=True)
    (out / "README.md").write_text(_readme(sources), encoding="utf-8")
    return list(images)


def _readme(sources: Mapping[str, Photograph]) -> str:
    """Return the README of the samples: authors, licenses and changes."""
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
            "Five photographs that no model of this repository was trained on, each with one degradation; `clean/`",
            f"holds the originals. All come from the Debian package `{source.package}`, are cropped and reduced to",
            f"{SIZE[0]}x{SIZE[1]} px, and remain under their authors' licences.",
            "",
            "| sample | photograph | author | licence | change, apart from crop and reduction |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "`dod-train photographs photographs` and `dod-train samples --photographs photographs` reproduce them.",
            "",
        ]
    )


def parser() -> Parser:
    """Return the parser of `dod-train samples`."""
    parser = Parser(
        prog="dod-train samples",
        description="Write the sample images of docs/samples: five photographs, each with one degradation.",
    )
    parser.add_argument(
        "out",
        type=Path,
        nargs="?",
        default=Path("docs/samples"),
        help="folder that receives the samples, clean/ and README.md (default: %(default)s)",
    )
    source = parser.add_argument_group("source")
    source.add_argument(
        "--photographs",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder that `dod-train photographs` wrote (required)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `dod-train samples`.

    Args:
        argv: arguments, by default those of the process.

    Returns:
        The exit code.

    Raises:
        DataError: see `write_samples`.
    """
    arguments = parser().parse_args(argv)
    for path in write_samples(arguments.out, arguments.photographs):
        print(f"{path}  {path.stat().st_size / 1000:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
