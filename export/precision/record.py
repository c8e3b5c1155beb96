"""The precision step of a build: ranges, islands, and what else was asked of the gate, in one record for the bundle."""

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
from export.graphs.fp16 import converted_copy, fp16_copy, within
from export.parity.reference import condition_of
from export.precision.ranges import (
    LARGEST,
    SAFETY,
    Comparison,
    Judged,
    Range,
    Reference,
    compare,
    judged,
    load_image,
    measure_ranges,
    measure_weights,
    restore,
    worst,
)
from export.precision.search import MARGIN, THRESHOLD, Choice, Search, alone

EXACT = 200.0
"""dB that stands for "nothing differs" in the record, for JSON has no infinity; None stands for "not finite"."""
GATE = ("bf16", "int8")
"""What is asked of the gate besides half; no graphs are written in it."""
Record = dict[str, Any]


def degradations(paths: Sequence[Path], conditions: Sequence[str]) -> dict[Path, str]:
    """Return the degradation of each photograph that is to be degraded before half precision is measured on it.

    Ranges are larger on degraded images. A photograph whose name begins with a condition is taken as it is. The others
    get, in turn, the conditions that no name begins with, as far as `dod.data.degradations` knows them. There are never
    more images than photographs.
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
) -> Record:
    """Measure the model on photographs and choose its fp32 islands (None), or judge those given.

    degraded: see `degradations`.

    The record, for JSON: what was looked at, `islands` {module: why}, `trials`, `components` (each alone in half;
    none where half meets the budget without islands),
    `gate` (bf16 and int8), `operations` in the order of the chain, and the `weights` with the largest values.
    """
    images = [load_image(path, model, (degraded or {}).get(path, "")) for path in paths]
    ranges: dict[str, Range] = {}
    plain = fp16_copy(model, ())
    references: list[Reference] = []
    none: list[Comparison] = []
    for reference in measure_ranges(model, images, ranges):
        references.append(reference)
        none.append(compare(plain, reference))
        say(f"ranges and half on {reference.image.name}: PSNR {none[-1].psnr_db:.1f} dB")
    hardest = references[worst(none)]
    enough = none[worst(none)].psnr_db >= THRESHOLD + MARGIN
    components = {} if enough else alone(model, plain, hardest)
    del plain
    weights = measure_weights(model)
    search = Search(model, references, none, ranges, weights, say)
    choice = search.choose() if fp32_modules is None else search.judge(fp32_modules)
    gate = {name: measure_gate(model, name, hardest) for name in GATE}
    assert choice.comparison is not None
    shown = next(each for each in none if each.image == choice.comparison.image)
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
        "uncured": choice.uncured,
        "first_lost": choice.comparison.overflows[0].name if choice.comparison.overflows else None,
        "trials": [{**asdict(each), "psnr_db": _db(each.psnr_db), "z0_snr_db": _db(each.z0_snr_db)}
                   for each in choice.trials],
        "components": {name: _judged(each) for name, each in components.items()},
        "gate": {name: {**_judged(each), "image": hardest.image.name} for name, each in gate.items()},
        "operations": list(_operations(ranges, shown, choice.comparison, choice.fp32_modules)),
        "weights": [{"name": name, **_range(each)} for name, each in
                    sorted(weights.items(), key=lambda item: item[1].headroom)[:15]],
    }  # fmt: skip


def check(record: Mapping[str, Any], asked: Sequence[str] = ()) -> None:
    """ParityError where half with its islands misses the budget on the calibration images, or what else was asked
    for does, with the measured number and, where something overflows, its name."""
    last = record["trials"][-1]
    mend = f"leave {' and '.join(asked)} out of --precision, which takes fp32 and fp16"
    for name in asked:
        found = record["gate"][name]["psnr_db"]
        what = f"precision {name}: PSNR {_text(found)} on {record['gate'][name]['image']}"
        if found is None or found < record["threshold_db"]:
            what += f", below the threshold of {record['threshold_db']:g} dB"
        raise ParityError(f"{what}: no graphs exist in {name}, and no bundle is written: {mend}")
    if last["psnr_db"] is not None and last["psnr_db"] >= record["threshold_db"]:
        return
    causes = [name for name in record["uncured"] if name in record["overflows"]] or list(record["overflows"])
    cause = record["first_lost"] or (causes[0] if causes else None)
    spans = {each["name"]: each["largest"] for each in (*record["operations"], *record["weights"])}
    lost = f"; {cause} reaches {spans[cause]:.3g}, float16 holds {LARGEST:.0f}" if cause in spans else ""
    mend = "leave --fp32-modules out, so that they are measured" if record["given"] else "build it in fp32"
    raise ParityError(
        f"half precision is below its threshold of {record['threshold_db']:g} dB with {len(record['fp32_modules'])} modules in fp32: "
        f"PSNR {_text(last['psnr_db'])}{lost}: {mend}; no bundle is written"
    )


@torch.no_grad()
def measure_gate(model: DOD, name: str, reference: Reference) -> Judged:
    """The whole chain in another precision on one image. bf16: true bfloat16 arithmetic. int8: weights of two axes
    or more (low-rank ones too) rounded to 255 levels for each output channel, symmetric; arithmetic in float32."""
    if name == "bf16":
        low = fp16_copy(model, (), torch.bfloat16)
    else:
        modules = dict(model.named_modules())

        def rounded(name: str, value: Tensor) -> Tensor:
            second = isinstance(modules[name.rpartition(".")[0]], torch.nn.ConvTranspose2d)
            return quantised(value, axis=1 if second else 0) if value.ndim > 1 else value

        low = converted_copy(model, rounded)
    return judged(restore(low, reference.image), reference.outcome)


def quantised(weight: Tensor, axis: int = 0) -> Tensor:
    """A weight as int8 holds it: w = s round(w / s), s = max|w| / 127 of each output channel. axis: that of these, 1 in
    a transposed convolution's weight."""
    others = [each for each in range(weight.ndim) if each != axis]
    scale = (weight.abs().amax(dim=others, keepdim=True) / 127).clamp(min=1e-30)
    return torch.round(weight / scale) * scale


def sums_in_float32() -> bool:
    """Whether this machine's half convolution and matrix product keep their sums in float32: a partial sum beyond
    65,504 that comes back into range is then no overflow here, as it may be elsewhere."""
    x = torch.tensor([6e4, 6e4, -6e4, -6e4] * 64, dtype=torch.float16)
    ones = torch.ones(8, 256, dtype=torch.float16)
    linear = torch.nn.functional.linear(x[None], ones)
    conv = torch.nn.functional.conv2d(x.view(1, 256, 1, 1).expand(1, 256, 4, 4), ones[:, :, None, None])
    return bool(linear.isfinite().all() and conv.isfinite().all())


def _operations(
    ranges: Mapping[str, Range], none: Comparison, chosen: Comparison, fp32_modules: Mapping[str, str]
) -> Iterable[Record]:
    for name, span in ranges.items():
        yield {
            "name": name,
            "component": span.stack[0],
            **_range(span),
            "fp16": name in none.low,
            "fp32_module": within(span.stack[-1], fp32_modules),
            "snr_none_db": _db(none.snr.get(name)),
            "snr_db": _db(chosen.snr.get(name)),
        }


def _range(span: Range) -> Record:
    return {
        "largest": float(f"{span.largest:.5g}"),
        "rms": float(f"{span.rms:.5g}"),
        "subnormal": round(span.share(span.subnormal), 6),
        "flushed": round(span.share(span.flushed), 6),
    }


def _share(model: DOD, choice: Choice) -> float:
    """The share of the parameters that stay in float32."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(size for name, size in sizes.items() if within(name, choice.fp32_modules)) / sum(sizes.values())


def _judged(value: Judged) -> Record:
    return {"psnr_db": _db(value.psnr_db), "z0_snr_db": _db(value.z0_snr_db)}


def _db(value: float | None) -> float | None:
    if value is None or math.isnan(value) or value == -math.inf:
        return None
    return round(min(value, EXACT), 2)


def _text(psnr: float | None) -> str:
    return "not finite" if psnr is None else f"{psnr:.1f} dB"
