"""The parity step: each condition path is compared with PyTorch where something that it runs has changed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from dod_runtime.backends.openvino.backend import reduced_precisions
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.console import progress
from export.cache import Artifact, Facts
from export.fingerprints import hash_images
from export.graphs.components import graphs_of
from export.interface import version
from export.parity.bundle_process import CheckedRun
from export.parity.check import check_count, check_parity
from export.parity.compare import GATES, ParityResult
from export.parity.runs import Values, condition_of, load_sample, paths_of, sample_pixels
from export.plan import BuildPlan
from export.report import write_comparison
from export.results import read_results as read_rows
from export.results import write_results
from export.sources import hash_sources
from export.steps.model_files import condition_file, graph_file, weights_file
from export.steps.precision import read_fp32_modules

__all__ = ["artifacts", "comparison_file", "openvino_precisions", "read_results", "record_file"]

SOURCES = ("dod/data", "export/graphs", "export/parity", "export/steps/parity.py", "dod_runtime")
"""Rooms that compute the results: the runtime, the reference, and what compares them."""
OTHER_PATHS = {"auto": ("unet_merged",), "merged": ("mfm", "unet_dynamic")}
"""Graphs that the condition path `auto`, and every named one, does not run."""


def record_file(path: str) -> str:
    """Return the name of the file with a condition path's results.

    Args:
        path: `auto` or a condition.
    """
    return f"report/parity/{path}.json"


def comparison_file(image: Path) -> str:
    """Return the name of the file that shows an image, degraded and restored.

    Args:
        image: a calibration image.
    """
    return f"report/{image.stem}.png"


def openvino_precisions(plan: BuildPlan) -> tuple[str, ...]:
    """Return the precisions that are checked on OpenVINO: fp32, and those that this CPU computes in natively.

    Args:
        plan: the build; without the target `openvino` there are none.
    """
    return ("fp32", *reduced_precisions()) if "openvino" in plan.options.targets else ()


def artifacts(plan: BuildPlan, bundle: Callable[[], Bundle], values: Callable[[], Values]) -> list[Artifact]:
    """Return the results of each condition path, and the restored images of `auto`.

    Making any of them uses the model up: it is on the meta device afterwards.

    Args:
        plan: the build.
        bundle: gives the finished files as a bundle, which is what the runtime will see.
        values: gives the reference's values of the first image on `auto`, where they are known; see
            `Simplification.values`.
    """
    maker = partial(_check, plan, bundle, values)
    images = _images_of(plan)
    shared = {
        "settings": plan.inputs["settings"],
        "openvino": list(openvino_precisions(plan)),
        "sources": hash_sources(*SOURCES),
        "libraries": {name: version(name) for name in ("torch", "onnxruntime", "openvino")},
    }
    found = []
    for path, chosen in images.items():
        inputs, needs = {**shared, "images": hash_images(chosen)}, _needs(plan, path)
        names = [record_file(path), *(map(comparison_file, chosen) if path == "auto" else ())]
        found += [Artifact(name, inputs, maker, needs) for name in names]
    return found


def read_results(plan: BuildPlan) -> list[ParityResult]:
    """Return the results of every path, in the order of the steps.

    Args:
        plan: a build whose artifacts of this step are finished.
    """
    results = [each for path in ("auto", *plan.conditions) for each in read_rows(plan.cache.path(record_file(path)))]
    steps = list(dict.fromkeys(each.step for each in results))
    return sorted(results, key=lambda each: (each.step != "merged", steps.index(each.step)))


def _images_of(plan: BuildPlan) -> dict[str, list[Path]]:
    """The images of each path, by the rule of `export.parity.reference.paths_of`."""
    named = {image: condition_of(image.name, plan.conditions) for image in plan.images}
    chosen = {name: [image for image in plan.images if named[image] == name] for name in sorted(plan.conditions)}
    return {"auto": list(plan.images), **{name: each or [plan.images[0]] for name, each in chosen.items()}}


def _needs(plan: BuildPlan, path: str) -> tuple[str, ...]:
    run = [graph for graph in graphs_of(plan.model) if graph not in OTHER_PATHS.get(path, OTHER_PATHS["merged"])]
    files = {each(precision, graph) for each in (graph_file, weights_file) for precision in plan.options.precisions
             for graph in run}  # fmt: skip
    return (*sorted(files), *((condition_file(path),) if path != "auto" else ()))


def _check(
    plan: BuildPlan, bundle: Callable[[], Bundle], values: Callable[[], Values], files: Mapping[str, Path]
) -> Generator[tuple[str, Facts], None, None]:
    opened = bundle()
    samples = [load_sample(path, opened, plan.conditions) for path in plan.images]
    shown = {path: comparison_file(path) for path in plan.images}
    stale = {
        path: runs
        for path, runs in paths_of(opened, samples).items()
        if record_file(path) in files or (path == "auto" and not files.keys().isdisjoint(shown.values()))
    }
    with tempfile.TemporaryDirectory(dir=plan.cache.scratch) as scratch:
        checked = check_parity(plan.model, read_fp32_modules(plan), opened, stale, Path(scratch), values())
        checks = list(progress(checked, check_count(opened, stale), "parity"))
    for path in stale:
        if record_file(path) in files:
            results = [result for check in checks if check.path == path for result in check.results]
            write_results(results, files[record_file(path)])
            yield record_file(path), {}
    largest = opened.manifest.profile.size[2]
    for image, name in shown.items():
        if name in files:
            write_comparison(sample_pixels(image, largest), _restored(checks, image), files[name])
            yield name, {}


def _restored(checks: Sequence[CheckedRun], image: Path) -> np.ndarray:
    """The image as it was restored by the last of the steps that every bundle has."""
    shown = [each for each in checks if (each.sample, each.path) == (image.name, "auto") and each.step not in GATES]
    return shown[-1].restored
