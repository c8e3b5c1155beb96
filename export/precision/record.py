"""The precision step of a build: ranges, fp32 modules and other precisions, in one record for the bundle."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dod.data.degradations import DEGRADATIONS
from dod.model.dod import DOD
from export.errors import ParityError
from export.graphs.fp16 import converted_copy, fp16_copy, is_inside
from export.parity.runs import condition_of
from export.precision.calibration import Quality, load_image, measure_quality, restore, worst
from export.precision.ranges import (
    LARGEST,
    SAFETY,
    CalibrationReference,
    PrecisionComparison,
    ValueRange,
    compare,
    measure_ranges,
    measure_weights,
)
from export.precision.search import MARGIN, THRESHOLD, ModuleChoice, ModuleSearch, Trial
from export.precision.sensitivity import component_quality

__all__ = [
    "EXACT",
    "OTHER_PRECISIONS",
    "PrecisionRecord",
    "calibrate",
    "check",
    "degradations",
    "measure_precision",
    "quantized",
    "sums_in_float32",
]

EXACT = 200.0
"""dB in the record that mean "no difference", because JSON has no infinity. None means "not finite"."""
OTHER_PRECISIONS = ("bf16", "int8")
"""Precisions that are measured besides fp16. No graphs are written in them."""
PrecisionRecord = dict[str, Any]
"""The record of `calibrate`."""


def degradations(paths: Sequence[Path], conditions: Sequence[str]) -> dict[Path, str]:
    """Choose the photographs that are degraded before fp16 is measured on them: ranges are larger on degraded images.

    A photograph whose name begins with a condition is used as it is. The other photographs are assigned, in turn, the
    conditions that no name begins with, if `dod.data.degradations` knows them.

    Args:
        paths: Photographs.
        conditions: Conditions of the model.

    Returns:
        Degradation by photograph.
    """
    named = {path: condition_of(path.name, conditions) for path in paths}
    missing = [each for each in conditions if each in DEGRADATIONS and each not in named.values()]
    return dict(zip((path for path in paths if not named[path]), missing, strict=False))


def calibrate(
    model: DOD,
    paths: Sequence[Path],
    fp32_modules: Sequence[str] | None,
    say: Callable[[str], None],
    degraded: Mapping[Path, str] | None = None,
) -> PrecisionRecord:
    """Measure the model on photographs and choose the modules that stay in fp32.

    Args:
        model: The model in fp32.
        paths: Photographs.
        fp32_modules: Modules to measure fp16 with; None to search for a small set.
        say: Function that is called with each line of progress.
        degraded: Degradation by photograph, see `degradations`.

    Returns:
        A record for JSON. `images`, `degraded` and `shown` (the worst image) say what was measured; `fp32_modules`
        gives the reason for each module and `trials` the sets that were tried; `components` holds the quality with one
        component at a time in fp16 (empty if fp16 reaches the threshold without fp32 modules); `other_precisions` those
        of bf16 and int8; `operations` the ranges and errors in the order of the pipeline; `weights` the weights with
        the largest values.
    """
    images = [load_image(path, model, (degraded or {}).get(path, "")) for path in paths]
    ranges: dict[str, ValueRange] = {}
    fp16 = fp16_copy(model, ())
    references: list[CalibrationReference] = []
    comparisons: list[PrecisionComparison] = []
    for reference in measure_ranges(model, images, ranges):
        references.append(reference)
        comparisons.append(compare(fp16, reference))
        say(f"ranges and fp16 on {reference.image.name}: PSNR {comparisons[-1].psnr_db:.1f} dB")
    hardest = references[worst(comparisons)]
    enough = comparisons[worst(comparisons)].psnr_db >= THRESHOLD + MARGIN
    components = {} if enough else component_quality(model, fp16, hardest)
    del fp16
    weights = measure_weights(model)
    search = ModuleSearch(model, references, comparisons, ranges, weights, say)
    choice = search.choose() if fp32_modules is None else search.measure(fp32_modules)
    others = {name: measure_precision(model, name, hardest) for name in OTHER_PRECISIONS}
    assert choice.comparison is not None
    shown = next(each for each in comparisons if each.image == choice.comparison.image)
    return {
        "images": [f"{each.image.name} {tuple(each.image.image.shape[2:])}" for each in references],
        "degraded": {path.name: name for path, name in (degraded or {}).items()},
        "shown": shown.image,
        "threshold_db": THRESHOLD,
        "margin_db": MARGIN,
        "safety": SAFETY,
        "eps_gain": round(((1 - model.unet.alpha_bar) / model.unet.alpha_bar) ** 0.5, 2),
        "sums_in_float32": sums_in_float32(),
        "given": fp32_modules is not None,
        "fp32_modules": choice.fp32_modules,
        "float32_share": _share(model, choice),
        "overflows": choice.overflows,
        "uncovered": choice.uncovered,
        "first_overflow": choice.comparison.overflows[0].name if choice.comparison.overflows else None,
        "trials": [{**asdict(each), **_quality(each)} for each in choice.trials],
        "components": {name: _quality(each) for name, each in components.items()},
        "other_precisions": {name: {**_quality(each), "image": hardest.image.name} for name, each in others.items()},
        "operations": list(_operations(ranges, shown, choice.comparison, choice.fp32_modules)),
        "weights": [{"name": name, **_range(each)} for name, each in
                    sorted(weights.items(), key=lambda item: item[1].headroom)[:15]],
    }  # fmt: skip


def check(record: Mapping[str, Any], asked: Sequence[str] = ()) -> None:
    """Check that fp16 with its fp32 modules reaches the threshold on the calibration images.

    Args:
        record: The record of `calibrate`.
        asked: Precisions of `OTHER_PRECISIONS` that a build was asked for.

    Raises:
        ParityError: If fp16 is below its threshold, with the result and the operation that overflows; or if another
            precision was asked for, since no graphs exist in it.
    """
    for name in asked:
        found = record["other_precisions"][name]
        message = f"precision {name}: PSNR {_text(found['psnr_db'])} on {found['image']}"
        if found["psnr_db"] is None or found["psnr_db"] < record["threshold_db"]:
            message += f", below the threshold of {record['threshold_db']:g} dB"
        remedy = f"leave {' and '.join(asked)} out of --precision, which takes fp32 and fp16"
        raise ParityError(f"{message}: no graphs exist in {name}, and no bundle is written: {remedy}")
    last = record["trials"][-1]
    if last["psnr_db"] is not None and last["psnr_db"] >= record["threshold_db"]:
        return
    causes = [name for name in record["uncovered"] if name in record["overflows"]] or list(record["overflows"])
    cause = record["first_overflow"] or (causes[0] if causes else None)
    largest = {each["name"]: each["largest"] for each in (*record["operations"], *record["weights"])}
    overflow = f"; {cause} reaches {largest[cause]:.3g}, float16 holds {LARGEST:.0f}" if cause in largest else ""
    remedy = "leave --fp32-modules out, so that they are measured" if record["given"] else "build it in fp32"
    raise ParityError(
        f"fp16 is below its threshold of {record['threshold_db']:g} dB with {len(record['fp32_modules'])} modules in "
        f"fp32: PSNR {_text(last['psnr_db'])}{overflow}: {remedy}; no bundle is written"
    )


@torch.no_grad()
def measure_precision(model: DOD, name: str, reference: CalibrationReference) -> Quality:
    """Measure the pipeline in another precision on one image.

    Args:
        model: The model in fp32.
        name: `bf16` for bfloat16 arithmetic, or `int8` for weights of at least two axes (the low-rank factors too)
            rounded to 255 levels for each output channel, symmetric, with float32 arithmetic.
        reference: The fp32 pipeline on the image.

    Returns:
        Quality of the results.
    """
    if name == "bf16":
        low = fp16_copy(model, (), torch.bfloat16)
    else:
        modules = dict(model.named_modules())

        def rounded(name: str, value: Tensor) -> Tensor:
            transposed = isinstance(modules[name.rpartition(".")[0]], torch.nn.ConvTranspose2d)
            return quantized(value, axis=1 if transposed else 0) if value.ndim > 1 else value

        low = converted_copy(model, rounded)
    return measure_quality(restore(low, reference.image), reference.output)


def quantized(weight: Tensor, axis: int = 0) -> Tensor:
    """Round a weight to int8: w = s round(w / s) with s = max|w| / 127 of each output channel.

    Args:
        weight: Weight with at least two axes.
        axis: Axis of the output channels: 1 for a transposed convolution, else 0.

    Returns:
        The rounded weight in the same type.
    """
    others = [each for each in range(weight.ndim) if each != axis]
    scale = (weight.abs().amax(dim=others, keepdim=True) / 127).clamp(min=1e-30)
    return torch.round(weight / scale) * scale


def sums_in_float32() -> bool:
    """Return True if this machine's fp16 convolutions and matrix products keep their sums in float32.

    A partial sum beyond 65,504 that returns into range is then no overflow on this machine, while it may be one on
    another.
    """
    x = torch.tensor([6e4, 6e4, -6e4, -6e4] * 64, dtype=torch.float16)
    ones = torch.ones(8, 256, dtype=torch.float16)
    linear = torch.nn.functional.linear(x[None], ones)
    conv = torch.nn.functional.conv2d(x.view(1, 256, 1, 1).expand(1, 256, 4, 4), ones[:, :, None, None])
    return bool(linear.isfinite().all() and conv.isfinite().all())


def _operations(
    ranges: Mapping[str, ValueRange],
    fp16: PrecisionComparison,
    chosen: PrecisionComparison,
    fp32_modules: Mapping[str, str],
) -> Iterable[PrecisionRecord]:
    for name, span in ranges.items():
        yield {
            "name": name,
            "component": span.stack[0],
            **_range(span),
            "fp16": name in fp16.reduced,
            "in_fp32_module": is_inside(span.stack[-1], fp32_modules),
            "snr_fp16_db": _db(fp16.snr.get(name)),
            "snr_chosen_db": _db(chosen.snr.get(name)),
        }


def _range(span: ValueRange) -> PrecisionRecord:
    return {
        "largest": float(f"{span.largest:.5g}"),
        "rms": float(f"{span.rms:.5g}"),
        "subnormal": round(span.share(span.subnormal), 6),
        "flushed": round(span.share(span.flushed), 6),
    }


def _share(model: DOD, choice: ModuleChoice) -> float:
    """Return the share of the parameters that stay in float32."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(size for name, size in sizes.items() if is_inside(name, choice.fp32_modules)) / sum(sizes.values())


def _quality(value: Quality | Trial) -> PrecisionRecord:
    return {"psnr_db": _db(value.psnr_db), "z0_snr_db": _db(value.z0_snr_db)}


def _db(value: float | None) -> float | None:
    if value is None or math.isnan(value) or value == -math.inf:
        return None
    return round(min(value, EXACT), 2)


def _text(psnr: float | None) -> str:
    return "not finite" if psnr is None else f"{psnr:.1f} dB"
