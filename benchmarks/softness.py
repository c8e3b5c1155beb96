"""Robustness to softness: restore every degradation on sharp, soft, resized and compressed images.

`python benchmarks/softness.py --bundle build/mini` prints PSNR of input and output on `auto` and on the named path, the
gain, and the gain as a percentage of the sharp image's; all measurements are written as JSON. Images are softened as
cameras and software do it (`dod.data.capture`): haze, rain and low light are in the scene and soften with it; noise and
blur are applied afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout's root and runtime/, not from this folder
    sys.path[:1] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "runtime")]

import numpy as np

from benchmarks.common_options import (
    add_bundle,
    add_photographs,
    add_runtime,
    benchmark_parser,
    check_at_least_one,
)
from benchmarks.degradation_cases import PSNR_CEILING
from benchmarks.json_file import write_json
from benchmarks.machine import machine_info
from benchmarks.photographs import load_photographs
from dod.data.capture import SHARP, Capture, record, soften
from dod.data.degradations import degrade, rng_for
from dod.data.images import centre_crop
from dod.data.kernels import defocus_kernel, motion_kernel
from dod.errors import DODError
from dod.evaluation.metrics import psnr
from dod_runtime.console import Parser, progress, run_command, table
from dod_runtime.errors import UsageError
from dod_runtime.restorer import Restorer

__all__ = ["main", "parser"]

OUT = Path("build/softness.json")
SIZE = 384
MIN_SIZE = 64
CAPTURES: Mapping[str, Capture] = {
    "sharp": SHARP,
    "blur 0.8 px": Capture(blur=0.8),
    "blur 1.2 px": Capture(blur=1.2),
    "blur 2 px": Capture(blur=2.0),
    "resized 1.5 x": Capture(scale=1.5),
    "resized 2 x": Capture(scale=2.0),
    "JPEG 75": Capture(quality=75),
}
KERNELS = {
    "linear 11 px": motion_kernel(11, 25),
    "curved 13 px": motion_kernel(13, 60, 0.2),
    "defocus 2.5 px": defocus_kernel(2.5),
}
SIGMA = 25.0
"""Standard deviation of the noise in gray levels."""
WITH_KEPT_GAIN = ("haze", "low-light", "rain", "noise")
"""Degradations whose gain is compared with that of the sharp image."""


@dataclass(frozen=True)
class SoftnessCase:
    """A degradation and a capture that an image goes through.

    Attributes:
        degradation: name of the degradation; None leaves the image clean.
        softness: name of the capture or blur kernel for the table.
        capture: blur, resizing, noise and compression.
        fixed: parameters of the degradation that are not drawn at random.
    """

    degradation: str | None
    softness: str
    capture: Capture
    fixed: Mapping[str, Any]


@dataclass(frozen=True)
class SoftnessResult:
    """One image in one case on one path.

    Attributes:
        image: name of the photograph.
        degradation: name of the degradation, or `clean`.
        softness: name of the capture or blur kernel.
        path: `auto`, or `named` for the path of the degradation.
        before: PSNR of the degraded image in dB.
        after: PSNR of the restored image in dB.
        share: bypass share in [0, 1].
    """

    image: str
    degradation: str
    softness: str
    path: str
    before: float
    after: float
    share: float


def softness_cases() -> list[SoftnessCase]:
    """Return all cases in the order of the table."""
    cases = [
        SoftnessCase(name, softness, capture, {})
        for name in ("haze", "rain", "low-light")
        for softness, capture in CAPTURES.items()
    ]
    cases += [SoftnessCase("noise", softness, capture, {"sigma": SIGMA}) for softness, capture in CAPTURES.items()]
    noise_of_one_level = Capture(noise=1.0)
    cases += [SoftnessCase("blur", name, noise_of_one_level, {"kernel": kernel}) for name, kernel in KERNELS.items()]
    return cases + [SoftnessCase(None, softness, capture, {}) for softness, capture in CAPTURES.items()]


def degrade_and_soften(case: SoftnessCase, name: str, clean: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Degrade and soften a clean image, uint8 [H, W, 3].

    The reference is as soft as the degraded image, without its noise and JPEG compression. A case that resizes takes
    the center of the image, so that the result has about the size of the image.

    Returns:
        (degraded, reference), both uint8 [H, W, 3].
    """
    if case.capture.scale != 1:
        clean = centre_crop(clean, round(min(clean.shape[:2]) / case.capture.scale))
    image = np.ascontiguousarray(clean, np.float32) / np.float32(255)
    rng = rng_for(name, case.degradation or "clean", seed)
    if case.degradation in ("noise", "blur"):
        reference = soften(image, case.capture)
        degraded = degrade(reference, case.degradation, rng, **case.fixed)[0]
    else:
        degraded = image if case.degradation is None else degrade(image, case.degradation, rng, **case.fixed)[0]
        degraded, reference = soften(degraded, case.capture), soften(image, case.capture)
    degraded = record(degraded, replace(case.capture, blur=0.0, scale=1.0), rng)
    return tuple(np.rint(each * 255).astype(np.uint8) for each in (degraded, reference))  # type: ignore[return-value]


def measure_all(restorer: Restorer, images: Mapping[str, np.ndarray], seed: int) -> Iterator[SoftnessResult]:
    """Yield the result of every case and image on `auto`, and on the named path if the case has a degradation."""
    for case in softness_cases():
        for name, clean in images.items():
            degraded, reference = degrade_and_soften(case, name, clean, seed)
            before = psnr(degraded, reference)
            for condition in ("auto", *([case.degradation] if case.degradation else [])):
                restored = restorer.restore(degraded, condition=condition, details=True)
                after = psnr(np.asarray(restored.image), reference)
                path = "auto" if condition == "auto" else "named"
                degradation = case.degradation or "clean"
                yield SoftnessResult(name, degradation, case.softness, path, before, after, restored.bypass_share)


def summarize(results: Sequence[SoftnessResult]) -> list[dict[str, Any]]:
    """Return means over the images: one row for each degradation and softness, with both paths."""
    rows: list[dict[str, Any]] = []
    for case in softness_cases():
        degradation = case.degradation or "clean"
        row: dict[str, Any] = {"degradation": degradation, "softness": case.softness}
        for path in ("named", "auto"):
            selected = [r for r in results if (r.degradation, r.softness, r.path) == (degradation, case.softness, path)]
            if selected:
                row["before"] = _mean([r.before for r in selected])
                row[path] = _mean([r.after for r in selected])
                gain = float(np.mean([r.after - r.before for r in selected]))
                row[f"{path}_gain"] = gain if case.degradation else None
                row[f"{path}_share"] = float(np.mean([r.share for r in selected]))
        sharp = next((r for r in rows if r["degradation"] == degradation and r["softness"] == "sharp"), row)
        for path in ("named", "auto"):
            gain, sharp_gain = row.get(f"{path}_gain"), sharp.get(f"{path}_gain")
            kept = None if gain is None or not sharp_gain else 100 * gain / sharp_gain
            row[f"{path}_kept"] = kept if degradation in WITH_KEPT_GAIN else None
        rows.append(row)
    return rows


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the table; `kept` is the gain as a percentage of the sharp image's gain."""
    headers = ["degradation", "softness", "input dB"]
    headers += ["named dB", "gain", "kept %", "auto dB", "gain", "kept %", "bypass"]
    cells = []
    for row in rows:
        line = [row["degradation"], row["softness"], _cell(row["before"], ".2f")]
        for path in ("named", "auto"):
            line += [_cell(row.get(path), ".2f"), _cell(row.get(f"{path}_gain"), "+.2f")]
            line.append(_cell(row[f"{path}_kept"], ".0f"))
        cells.append([*line, _cell(row.get("auto_share"), ".2f")])
    return table(headers, cells, "ll" + "r" * 8)


def parser() -> Parser:
    """Return the command's parser."""
    made = benchmark_parser("softness", __doc__ or "")
    inputs = made.add_argument_group("input")
    add_bundle(inputs)
    add_photographs(inputs, SIZE)
    add_runtime(made.add_argument_group("restoration"))
    output = made.add_argument_group("output")
    output.add_argument(
        "--out", type=Path, default=OUT, metavar="FILE", help="JSON file for all measurements (default: %(default)s)"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: arguments.

    Returns:
        Exit code 0.

    Raises:
        UsageError: an argument is invalid.
    """
    arguments = parser().parse_args(argv)
    check_at_least_one(arguments, "limit")
    if arguments.size < MIN_SIZE:
        raise UsageError(f"--size must be at least {MIN_SIZE}, not {arguments.size}")
    options = {"precision": arguments.precision, "num_threads": arguments.num_threads}
    with Restorer(arguments.bundle, backend=arguments.backend, **options) as restorer:
        for case in softness_cases():
            restorer.check_condition(case.degradation or "auto")
        images = {
            name: np.ascontiguousarray(centre_crop(pixels, arguments.size))
            for name, pixels in load_photographs(arguments.photographs, arguments.limit).items()
        }
        total = len(images) * sum(2 if case.degradation else 1 for case in softness_cases())
        results = list(progress(measure_all(restorer, images, arguments.seed), total, "restoring"))
        setting = {
            "machine": machine_info(),
            "backend": restorer.description,
            "model": dict(restorer.bundle.manifest.model),
        }
    rows = summarize(results)
    setting |= {"photographs": list(images), "size": arguments.size, "seed": arguments.seed}
    data = {**setting, "summary": rows, "measurements": [asdict(each) for each in results]}
    write_json(arguments.out, data)
    print(format_table(rows))
    clean = [row["auto"] for row in rows if row["degradation"] == "clean" and "JPEG" not in row["softness"]]
    print(f"clean images without JPEG, sharp and soft: mean output {_mean(clean):.2f} dB")
    print(arguments.out)
    return 0


def _mean(values: Sequence[float]) -> float:
    """Return the mean in dB; values are clipped to `PSNR_CEILING`."""
    return float(np.mean(np.minimum(values, PSNR_CEILING)))


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None or not np.isfinite(value) else format(value, form)


if __name__ == "__main__":
    sys.exit(run_command(main, also=(DODError,)))
