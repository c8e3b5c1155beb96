"""The report of a build: `report.md`, the parity table, and the images before and after."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dod_runtime.console import table
from export.graphs import costs
from export.graphs.condition_files import without_prototypes
from export.ledger import CacheEntry
from export.parity.compare import GATES, ParityResult, unchecked
from export.precision import plot, summary
from export.results import verdict

__all__ = ["parity_table", "report_text", "write_comparison"]

HEADERS = ("path", "component", "step", "max abs", "SNR dB", "PSNR dB", "threshold", "")


def parity_table(results: Sequence[ParityResult], markdown: bool = False, paths: Iterable[str] = ()) -> str:
    """Return the worst result over the images for each path, component and step, in the order of measurement.

    Args:
        results: the results of a build.
        markdown: format as Markdown.
        paths: condition paths of the bundle; those that were not checked are listed below the table.
    """
    groups: dict[tuple[str, str, str], list[ParityResult]] = {}
    for result in results:
        groups.setdefault((result.path, result.component, result.step), []).append(result)
    rows = []
    for (path, component, step), members in groups.items():
        psnr = [result.psnr_db for result in members if result.psnr_db is not None]
        rows.append(
            (
                path,
                component,
                step,
                f"{max(result.max_abs for result in members):.2e}",
                _decibel(min(result.snr_db for result in members)),
                _decibel(min(psnr)) if psnr else "",
                members[0].threshold or "",
                _status(members),
            )
        )
    measured_with = {result.step: result.measured_with for result in results}
    notes = [f"{step}: {runtime}" for step, runtime in measured_with.items()]
    images = len({result.image for result in results})
    head = f"Compared with PyTorch fp32, the worst of {images} images (single components on the first image):"
    sections = [head, table(HEADERS, rows, "lllrrrll", markdown=markdown), "\n".join(notes)]
    if missing := unchecked(results, paths):
        sections.append(f"NOT CHECKED on any image: condition paths {', '.join(missing)}.")
    return "\n\n".join(sections)


def _status(members: Sequence[ParityResult]) -> str:
    passed = all(result.passed for result in members)
    if members[0].step in GATES and members[0].threshold:
        return "ok" if passed else "missed: not offered"
    return "ok" if passed else "FAILED"


def write_comparison(degraded: np.ndarray, restored: np.ndarray, path: Path) -> None:
    """Write the degraded and the restored image side by side as PNG.

    Args:
        degraded: float32 [H, W, 3] in [-1, 1].
        restored: float32 [1, 3, H', W'] in [-1, 1] with H' >= H and W' >= W; what exceeds H and W is cut off.
        path: the file.
    """
    height, width = degraded.shape[:2]
    both = np.concatenate([degraded, restored[0, :, :height, :width].transpose(1, 2, 0)], axis=1)
    Image.fromarray(np.clip(np.round((both + 1) * 127.5), 0, 255).astype(np.uint8)).save(path, "PNG", optimize=True)


def report_text(
    manifest: Mapping[str, Any],
    files: Mapping[str, CacheEntry],
    results: Sequence[ParityResult],
    images: Mapping[str, str],
    graph_costs: Mapping[str, Any],
    precision: Mapping[str, Any] | None = None,
) -> str:
    """Return `report.md`: the verdict, then targets, parity, cost, precision, images and files.

    Args:
        manifest: content of `bundle.json`.
        files: entries of the finished files, by name.
        results: the results of the build.
        images: for each image the file that shows it before and after.
        graph_costs: costs of each graph before and after the exact simplifications.
        precision: record of the precision step, None where there was none.
    """
    targets = [
        (
            name,
            each.get("version", ""),
            ", ".join(each["precisions"]),
            ", ".join(each.get("compute_capabilities", [])),
            len(each.get("engines", {})),
        )
        for name, each in manifest["targets"].items()
    ]
    listed = [
        (name, f"{entry.bytes / 1e6:.2f}", f"{entry.seconds:.1f}", entry.facts.get("layers"))
        for name, entry in sorted(files.items())
        if not name.startswith("report/")
    ]
    model, fp32_modules = manifest["model"], manifest["precisions"].get("fp16", {}).get("fp32_modules", [])
    sections = [
        f"# Bundle `{manifest['name']}`",
        "\n".join(f"- {line}" for line in verdict(manifest, results)),
        f"Base `{model['base_sha256'][:16]}`, checkpoint `{model['checkpoint_sha256'][:16]}`; conditions: "
        f"{', '.join(manifest['conditions']) or 'none'}; sides {manifest['profile']['size']} px, "
        f"batch {manifest['profile']['batch']}.",
        *((f"**Warning**: {without_prototypes(model)}.",) if not manifest["conditions"] else ()),
        "## Targets",
        table(("target", "version", "precisions", "compute capabilities", "engines"), targets, markdown=True),
        "Engines were built and their inputs and outputs recorded; none was run on a GPU by this command.",
        "## Parity",
        parity_table(results, markdown=True, paths=("auto", *manifest["conditions"])),
        f"Modules kept in fp32 in the fp16 graphs: {', '.join(fp32_modules) or 'none'}.",
        "## Cost",
        f"One image of {costs.SIDE} x {costs.SIDE} px, before and after the exact simplifications. MB moved: bytes "
        "that the operators read and write one by one in fp32, weights included.",
        costs.section(graph_costs),
        *(summary.section(precision, plot.PLOT) if precision else ()),
        "## Images",
        *(
            f"{name}, degraded and restored (condition path `auto`):\n\n![{name}]({file})"
            for name, file in images.items()
        ),
        "## Files",
        table(("file", "MB", "seconds", "layers"), listed, "lrrr", markdown=True),
    ]
    return "\n\n".join(sections) + "\n"


def _decibel(value: float) -> str:
    return "exact" if value == math.inf else f"{value:.1f}"
