"""Robustness: every degradation on sharp and soft images, restored on `auto` and on the named path.

`python benchmarks/softness.py --bundle build/mini` prints a table: the PSNR of input and output, the gain, and its
share of the gain that the sharp image gets; the same as JSON. Images are softened as cameras and software do it
(`dod.data.capture`): the degradation lies in the scene and softens with it, while noise and blur lie on top.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: imports start at the checkout's root and runtime/, not in this folder
    sys.path[:1] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "runtime")]

import numpy as np

from benchmarks.machine import facts
from benchmarks.photographs import OWN, photographs
from benchmarks.tasks import CEILING
from dod.data.capture import SHARP, Capture, record, soften
from dod.data.degradations import degrade, rng_for
from dod.data.images import centre_crop
from dod.data.kernels import defocus_kernel, motion_kernel
from dod.errors import DODError
from dod.evaluation.metrics import psnr
from dod_runtime.console import Parser, progress, run_command, table
from dod_runtime.errors import UsageError
from dod_runtime.restorer import Restorer

BUNDLE, OUT = Path("build/mini"), Path("build/softness.json")
SIZE = 384
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
LEAST = {"haze": 75, "low-light": 75, "rain": 60, "noise": 60}
"""Percent of the sharp image's gain that the named path must keep; `auto` must keep 60, of rain and noise 50."""


@dataclass(frozen=True)
class Case:
    """One way to spoil a clean image: the degradation (None leaves it clean), the capture, and how it is called."""

    degradation: str | None
    softness: str
    capture: Capture
    fixed: Mapping[str, Any]


@dataclass(frozen=True)
class Measurement:
    """One image of one case on one path: PSNR in dB before and after, and the bypass share in 0 to 1."""

    image: str
    degradation: str
    softness: str
    path: str
    before: float
    after: float
    share: float


def cases() -> list[Case]:
    """Every case of the table, in its order."""
    found = [Case(name, soft, each, {}) for name in ("haze", "rain", "low-light") for soft, each in CAPTURES.items()]
    for soft, each in CAPTURES.items():
        found.append(Case("noise", soft, each, {"sigma": SIGMA}))
    one_level = Capture(noise=1.0)
    found += [Case("blur", name, one_level, {"kernel": kernel}) for name, kernel in KERNELS.items()]
    return found + [Case(None, soft, each, {}) for soft, each in CAPTURES.items()]


def spoil(case: Case, name: str, clean: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(degraded, reference) of one clean image uint8 [H, W, 3]; both uint8.

    A resized case takes the middle of the image, so that the result has about its size. The reference is as soft as the
    degraded image and has neither its noise nor its JPEG.
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


def measure(restorer: Restorer, images: Mapping[str, np.ndarray], seed: int) -> Iterator[Measurement]:
    """Every case of every image on `auto`, and on the named path where the case has a degradation."""
    for case in cases():
        for name, clean in images.items():
            degraded, reference = spoil(case, name, clean, seed)
            before = psnr(degraded, reference)
            for path in ("auto", *([case.degradation] if case.degradation else [])):
                found = restorer.restore(degraded, path, details=True)
                after = psnr(np.asarray(found.image), reference)
                which = "auto" if path == "auto" else "named"
                label = case.degradation or "clean"
                yield Measurement(name, label, case.softness, which, before, after, found.bypass_share)


def summary(measured: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Means over the images, one row for each degradation and softness, with the named path beside `auto`."""
    rows: list[dict[str, Any]] = []
    for case in cases():
        label = case.degradation or "clean"
        row: dict[str, Any] = {"degradation": label, "softness": case.softness}
        for path in ("named", "auto"):
            mine = [m for m in measured if (m.degradation, m.softness, m.path) == (label, case.softness, path)]
            if mine:
                row["before"] = _mean([m.before for m in mine])
                row[path] = _mean([m.after for m in mine])
                row[f"{path}_gain"] = float(np.mean([m.after - m.before for m in mine])) if case.degradation else None
                row[f"{path}_share"] = float(np.mean([m.share for m in mine]))
        sharp = next((each for each in rows if each["degradation"] == label and each["softness"] == "sharp"), row)
        for path in ("named", "auto"):
            gain, whole = row.get(f"{path}_gain"), sharp.get(f"{path}_gain")
            row[f"{path}_kept"] = None if gain is None or not whole or label not in LEAST else 100 * gain / whole
        rows.append(row)
    return rows


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table. `kept` is the percentage of the sharp image's gain."""
    headers = [
        "degradation",
        "softness",
        "input dB",
        "named dB",
        "gain",
        "kept %",
        "auto dB",
        "gain",
        "kept %",
        "bypass",
    ]
    cells = []
    for row in rows:
        line = [row["degradation"], row["softness"], _cell(row["before"], ".2f")]
        for path in ("named", "auto"):
            line += [_cell(row.get(path), ".2f"), _cell(row.get(f"{path}_gain"), "+.2f")]
            line.append(_cell(row[f"{path}_kept"], ".0f"))
        cells.append([*line, _cell(row.get("auto_share"), ".2f")])
    return table(headers, cells, "ll" + "r" * 8)


def parser() -> Parser:
    """The arguments of the command."""
    made = Parser(prog="python benchmarks/softness.py", description=(__doc__ or "").split("\n")[0])
    add = made.add_argument
    add("--bundle", type=Path, default=BUNDLE, help="(default: %(default)s)")
    add(
        "--photographs",
        nargs="+",
        default=[OWN],
        metavar="FOLDER",
        help="folders of clean photographs, or the word scikit-image for its own (default: %(default)s)",
    )
    add("--size", type=int, default=SIZE, help="images are cropped to at most this side in px (default: %(default)s)")
    add("--limit", type=int, help="take only the first N of each folder (default: all)")
    add("--seed", type=int, default=0, help="seed of the degradations (default: %(default)s)")
    add("--backend", default="auto", help="(default: %(default)s)")
    add("--precision", default="auto", help="auto, fp32 or fp16 (default: %(default)s)")
    add("--num-threads", type=int, help="threads of the CPU (default: all cores)")
    add("--out", type=Path, default=OUT, help="file for all measurements as JSON (default: %(default)s)")
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    arguments = parser().parse_args(argv)
    if arguments.size < 64:
        raise UsageError(f"--size {arguments.size}: it must be at least 64")
    options = {"precision": arguments.precision, "num_threads": arguments.num_threads}
    with Restorer(arguments.bundle, arguments.backend, **options) as restorer:
        for case in cases():
            restorer.check_condition(case.degradation or "auto")
        images = {
            name: np.ascontiguousarray(centre_crop(pixels, arguments.size))
            for name, pixels in photographs(arguments.photographs, arguments.limit).items()
        }
        total = len(images) * sum(2 if case.degradation else 1 for case in cases())
        measured = list(progress(measure(restorer, images, arguments.seed), total, "restoring"))
        setting = {"machine": facts(), "backend": restorer.description, "model": dict(restorer.bundle.manifest.model)}
    rows = summary(measured)
    setting |= {"photographs": list(images), "size": arguments.size, "seed": arguments.seed}
    data = {**setting, "summary": rows, "measurements": [asdict(each) for each in measured]}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(_finite(data), indent=1, allow_nan=False) + "\n", "utf-8")
    print(text(rows))
    clean = [row["auto"] for row in rows if row["degradation"] == "clean" and "JPEG" not in row["softness"]]
    print(f"clean images, sharp or soft, come back at {_mean(clean):.2f} dB in the mean (without JPEG)")
    print(arguments.out)
    return 0


def _mean(values: Sequence[float]) -> float:
    """The mean in dB; more than `CEILING` counts as that."""
    return float(np.mean(np.minimum(values, CEILING)))


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None or not np.isfinite(value) else format(value, form)


def _finite(value: Any) -> Any:
    """The same for JSON, None in the place of what is not finite."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(run_command(main, also=(DODError,)))
