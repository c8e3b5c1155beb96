"""The proof as artefacts of the build: the figures of each path, proven anew only where what that path runs changed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dod.model.dod import DOD
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.console import progress
from export import report
from export.cache import BuildCache, hash_sources, package_sources
from export.interface import version
from export.parity.bundle_process import CheckedRun
from export.parity.check import check_count, check_parity
from export.parity.compare import GATES, ParityResult
from export.parity.runs import ParityRun, Values, load_sample, parity_steps, paths_of, sample_pixels
from export.preflight import ROOT, hash_samples

COMPUTING = (
    "graphs/fp16",
    "parity/bundle_process",
    "parity/check",
    "parity/compare",
    "parity/reference",
    "parity/runs",
    "parity/sequence",
    "precision/calibration",
    "steps/parity",
    "steps/simplify",
)
SOURCES = [
    *(ROOT / "export" / f"{name}.py" for name in COMPUTING),
    *package_sources(ROOT / "runtime" / "dod_runtime"),
]
"""What computes the figures, the runtime among it."""


def measured(
    cache: BuildCache,
    model: DOD,
    fp32_modules: Sequence[str],
    bundle: Bundle,
    samples: Sequence[Path],
    settings: Mapping[str, object],
    explaining: bool,
    computed: Values,
) -> tuple[list[ParityResult], dict[str, Path]]:
    """The figures of every path, step by step, and the restored samples as images, by sample.

    bundle: the files made so far. settings: what decides the model's graphs and is in no file. Where a path is stale,
    the model has no values any more afterwards: see `prove`. explaining: it is only asked what is fresh.
    computed: see `prove`.
    """
    images = {path.name: f"report/{path.stem}.png" for path in samples}
    loaded = [load_sample(path, bundle, tuple(bundle.manifest.conditions)) for path in samples]
    paths = paths_of(bundle, loaded)
    records = {path: f"report/parity/{path}.json" for path in paths}
    inputs = {path: {"settings": settings, **_inputs(cache, bundle, samples, runs)} for path, runs in paths.items()}
    stale = {}
    for path, runs in paths.items():
        wanted = [records[path], *(images.values() if path == "auto" else ())]
        fresh = [cache.fresh(name, inputs[path]) for name in wanted]  # all are asked, so that all are used
        if not all(fresh) and not explaining:
            stale[path] = runs
            for name in wanted:  # one that is taken over may be a link to the file of the bundle before
                cache.path(name).unlink(missing_ok=True)
    if explaining:
        return [], {}
    if stale:
        start = time.monotonic()
        with tempfile.TemporaryDirectory(dir=cache.root) as scratch:
            checked = check_parity(model, fp32_modules, bundle, stale, Path(scratch), computed)
            checks = list(progress(checked, check_count(bundle, stale), "parity"))
        for path in stale:
            figures = [figure for check in checks if check.path == path for figure in check.results]
            report.write_figures(figures, cache.path(records[path]))
            cache.record(records[path], inputs[path], time.monotonic() - start)
        if "auto" in stale:
            largest = bundle.manifest.profile.size[2]
            for sample, name in zip(samples, images.values(), strict=True):
                report.write_comparison(sample_pixels(sample, largest), _restored(checks, sample), cache.path(name))
                cache.record(name, inputs["auto"], 0)
    steps = ["merged", *(step.name for step in parity_steps(bundle))]
    figures = [figure for name in records.values() for figure in report.read_figures(cache.path(name))]
    figures.sort(key=lambda figure: steps.index(figure.step))
    return figures, {sample: cache.path(name) for sample, name in images.items()}


def _inputs(cache: BuildCache, bundle: Bundle, samples: Sequence[Path], runs: Sequence[ParityRun]) -> dict[str, object]:
    """What decides the figures of one path."""
    path, components, names = runs[0].path, runs[0].components, [run.sample.name for run in runs]
    precisions = bundle.manifest.precisions.values()
    files = {files[component] for each in precisions for files in (each.onnx, each.weights) for component in components}
    files |= {bundle.manifest.conditions[path]} if path != "auto" else set()
    return {
        "files": {name: cache.used[name].sha256 for name in sorted(files)},
        "samples": hash_samples([each for each in samples if each.name in names]),
        "alone": {run.sample.name: list(run.isolated) for run in runs},
        "subjects": [step.name for step in parity_steps(bundle)],
        "sources": hash_sources(SOURCES),
        "libraries": {name: version(name) for name in ("torch", "onnxruntime", "openvino")},
    }


def _restored(checks: Sequence[CheckedRun], sample: Path) -> np.ndarray:
    """A sample as the last of the steps restored it that is in every bundle."""
    shown = [each for each in checks if (each.sample, each.path) == (sample.name, "auto") and each.step not in GATES]
    return shown[-1].restored
