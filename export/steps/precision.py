"""The precision step: ranges and fp16 are measured once for a model, and decide which modules stay in fp32."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from dod.model.dod import DOD
from export.cache import Artifact, writes
from export.fingerprints import hash_images
from export.plan import BuildPlan
from export.precision.plot import PLOT, draw
from export.precision.record import PrecisionRecord, calibrate, degradations
from export.sources import hash_sources

__all__ = ["FP32_MODULES", "RECORD", "artifacts", "read_fp32_modules", "read_record"]

RECORD = "report/precision.json"
FP32_MODULES = "report/fp32_modules.json"
"""The names of the modules that stay in fp32 in the fp16 graphs. Those graphs are made from it, not from the record: a
measurement that gives the same modules leaves them cached."""
SOURCES = ("export/precision", "export/parity")


def artifacts(plan: BuildPlan) -> list[Artifact]:
    """Return the record of the measurement, the fp32 modules, and the plot of `report.md`.

    Nothing is measured where the build has no fp16 and no measured precisions.

    Args:
        plan: the build; its model must be simplified when the record is made.
    """
    options, model = plan.options, plan.model
    if "fp16" not in options.precisions and not options.measured_precisions:
        return []
    degraded = degradations(plan.images, tuple(model.prototypes) or model.preset.conditions)
    by_name = {path.name: degradation for path, degradation in degraded.items()}
    inputs = {
        **plan.inputs,
        "images": hash_images(plan.images),
        **({"degraded": by_name, "degraded by": hash_sources("dod/data")} if degraded else {}),
        "fp32 modules": None if options.fp32_modules is None else list(options.fp32_modules),
        "measured by": hash_sources(*SOURCES),
        "torch": torch.__version__,
    }
    record = plan.cache.path(RECORD)
    measure = writes(_measure, model, plan.images, options.fp32_modules, degraded)
    return [
        Artifact(RECORD, inputs, measure),
        Artifact(FP32_MODULES, {}, writes(_write_fp32_modules, record), (RECORD,)),
        Artifact(PLOT, {"drawn by": hash_sources("export/precision/plot.py")}, writes(_draw, record), (RECORD,)),
    ]


def read_record(plan: BuildPlan) -> PrecisionRecord | None:
    """Return the record of the measurement, None where the build has none.

    Args:
        plan: a build whose artifacts of this step are finished.
    """
    return _read(plan.cache.path(RECORD)) if RECORD in plan.cache.used else None


def read_fp32_modules(plan: BuildPlan) -> tuple[str, ...]:
    """Return the modules that stay in fp32 in the fp16 graphs, none where the build has no fp16.

    Args:
        plan: a build whose artifacts of this step are finished.
    """
    return tuple(_read(plan.cache.path(FP32_MODULES))) if FP32_MODULES in plan.cache.used else ()


def _measure(
    model: DOD, images: Sequence[Path], fp32_modules: Sequence[str] | None, degraded: Mapping[Path, str], path: Path
) -> None:
    record = calibrate(model, images, fp32_modules, _say, degraded)
    path.write_text(json.dumps(record) + "\n")


def _write_fp32_modules(record: Path, path: Path) -> None:
    path.write_text(json.dumps(list(_read(record)["fp32_modules"]), indent=1) + "\n")


def _draw(record: Path, path: Path) -> None:
    draw(_read(record), path)


def _read(path: Path) -> PrecisionRecord:
    return json.loads(path.read_text())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
