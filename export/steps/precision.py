"""The precision step as an artefact of the build: measured once for the same model, photographs and code."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from functools import partial

import torch

from dod.model.dod import DOD
from export.cache import BuildCache, hash_sources
from export.precision.plot import PLOT, draw
from export.precision.record import PrecisionRecord, calibrate, degradations
from export.preflight import ROOT, Options, sample_paths

RECORD = "report/precision.json"
UNMEASURED = "to be measured"
SOURCES = [
    *(
        ROOT / "export" / "precision" / f"{name}.py"
        for name in ("calibration", "probe", "ranges", "record", "search", "sensitivity")
    ),
    *(ROOT / "export" / "parity" / f"{name}.py" for name in ("compare", "reference", "sequence")),
]
DEGRADING = [ROOT / "dod" / "data" / f"{name}.py" for name in ("degradations", "kernels")]


def measured(
    cache: BuildCache, model: DOD, options: Options, inputs: Mapping[str, object], explaining: bool
) -> PrecisionRecord | None:
    """The record of `calibrate`, made where it is stale (None while explaining), and its plot.

    inputs: what identifies the model, its code and the photographs. Each trial is a line on stderr.
    """
    paths = sample_paths(options.samples)
    degraded = degradations(paths, tuple(model.prototypes) or model.preset.conditions)
    if degraded:
        inputs = {**inputs, "degraded": {path.name: name for path, name in degraded.items()}}
        inputs["degraded by"] = hash_sources(DEGRADING)
    inputs = {
        **inputs,
        "fp32 islands": None if options.fp32_modules is None else list(options.fp32_modules),
        "measured by": hash_sources(SOURCES),
        "torch": torch.__version__,
    }
    fresh = cache.fresh(RECORD, inputs)
    if not fresh and not explaining:
        start = time.monotonic()
        record = calibrate(model, paths, options.fp32_modules, _say, degraded)
        cache.path(RECORD).unlink(missing_ok=True)  # it may be a link to the file of the bundle before
        cache.path(RECORD).write_text(json.dumps(record) + "\n")
        seconds = time.monotonic() - start
        print(f"{RECORD:<44} {len(record['fp32_modules']):5} islands {seconds:7.1f} s", flush=True)
        cache.record(RECORD, inputs, seconds)
    record = json.loads(cache.path(RECORD).read_text()) if fresh or not explaining else None
    drawn = {
        "record": cache.used[RECORD].sha256 if record else UNMEASURED,
        "sources": hash_sources([ROOT / "export" / "precision" / "plot.py"]),
    }
    if not cache.fresh(PLOT, drawn) and not explaining:
        assert record is not None
        cache.make(PLOT, drawn, partial(draw, record))
    return record


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
