"""What a build shows: the parity table, the images, and the bundle's report.md."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dod_runtime.console import table
from export.cache import BuildCache
from export.graphs import costs
from export.graphs.condition_files import without_prototypes
from export.parity.compare import GATES, ParityResult, unchecked
from export.precision import plot, summary

HEADERS = ("path", "component", "step", "max abs", "SNR dB", "PSNR dB", "threshold", "")


def parity_table(figures: Sequence[ParityResult], markdown: bool = False, paths: Iterable[str] = ()) -> str:
    """The worst figure over the images for each path, component and step, in the order they were measured.

    paths: the condition paths of the bundle. Those that were not checked are listed.
    """
    groups: dict[tuple[str, str, str], list[ParityResult]] = {}
    for figure in figures:
        groups.setdefault((figure.path, figure.component, figure.step), []).append(figure)
    rows = []
    for (path, component, step), members in groups.items():
        psnr = [figure.psnr_db for figure in members if figure.psnr_db is not None]
        rows.append(
            (
                path,
                component,
                step,
                f"{max(figure.max_abs for figure in members):.2e}",
                _decibel(min(figure.snr_db for figure in members)),
                _decibel(min(psnr)) if psnr else "",
                members[0].threshold or "",
                _verdict(members),
            )
        )
    measured_with_all = {figure.step: figure.measured_with for figure in figures}
    notes = [f"{step}: {measured_with}" for step, measured_with in measured_with_all.items()]
    images = len({figure.image for figure in figures})
    head = f"Against PyTorch fp32, the worst of {images} photographs (components alone on the first):"
    sections = [head, table(HEADERS, rows, "lllrrrll", markdown=markdown), "\n".join(notes)]
    if missing := unchecked(figures, paths):
        sections.append(f"NOT CHECKED on any sample: condition paths {', '.join(missing)}.")
    return "\n\n".join(sections)


def _verdict(members: Sequence[ParityResult]) -> str:
    passed = all(figure.passed for figure in members)
    if members[0].step in GATES and members[0].threshold:
        return "ok" if passed else "missed: not offered"
    return "ok" if passed else "FAILED"


def write_figures(figures: Sequence[ParityResult], path: Path) -> None:
    """All figures as JSON."""
    path.write_text(json.dumps(rows(figures), indent=1) + "\n")


def rows(figures: Sequence[ParityResult]) -> list[dict[str, Any]]:
    """The figures for JSON, which has no infinity: where nothing differs, the decibels are null."""
    return [{k: None if v == math.inf and k != "max_abs" else v for k, v in asdict(each).items()} for each in figures]


def unchecked_rows(figures: Sequence[ParityResult], paths: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of the manifest's `parity` for condition paths that were not checked: no value, `passed` is null."""
    empty = dict.fromkeys(each.name for each in fields(ParityResult))
    stated = {"component": "pipeline", "step": "not checked", "measured_with": "no sample ran this path"}
    return [{**empty, **stated, "path": path} for path in unchecked(figures, paths)]


def read_figures(path: Path) -> list[ParityResult]:
    """What `write_figures` wrote."""
    return figures_of(json.loads(path.read_text()))


def figures_of(rows: Sequence[dict[str, Any]]) -> list[ParityResult]:
    """The figures of `rows`, read back."""
    figures = []
    for row in rows:
        for key in ("snr_db", "psnr_db") if row["component"] == "pipeline" else ("snr_db",):
            row[key] = math.inf if row[key] is None else row[key]
        figures.append(ParityResult(**row))
    return figures


def write_comparison(degraded: np.ndarray, restored: np.ndarray, path: Path) -> None:
    """The degraded image and the restored one side by side, as PNG.

    degraded: float32 [H, W, 3] in [-1, 1]; restored: float32 [1, 3, at least H, at least W], the same.
    """
    height, width = degraded.shape[:2]
    both = np.concatenate([degraded, restored[0, :, :height, :width].transpose(1, 2, 0)], axis=1)
    Image.fromarray(np.clip(np.round((both + 1) * 127.5), 0, 255).astype(np.uint8)).save(path, optimize=True)


def write(
    cache: BuildCache,
    manifest: Mapping[str, Any],
    figures: Sequence[ParityResult],
    images: Mapping[str, Path],
    simplified: Path,
    precision: Mapping[str, Any] | None = None,
) -> None:
    """report.md: what was built, the proof, and the restored samples.

    simplified: the record of what the exact simplifications save; precision: that of the precision step.
    """
    targets = [
        (
            name,
            each.get("version", ""),
            ", ".join(each.get("precisions") or [each["precision"]]),
            ", ".join(each.get("compute_capabilities", [])),
            len(each.get("engines", {})),
        )
        for name, each in manifest["targets"].items()
    ]
    files = [
        (name, f"{entry.bytes / 1e6:.2f}", f"{entry.seconds:.1f}", entry.facts.get("layers"))
        for name, entry in sorted(cache.used.items())
        if not name.startswith("report/")
    ]
    model, fp32_modules = manifest["model"], manifest["precisions"].get("fp16", {}).get("fp32_modules", [])
    sections = [
        f"# Bundle `{manifest['name']}`",
        f"Base `{model['base_sha256'][:16]}`, checkpoint `{model['checkpoint_sha256'][:16]}`; conditions: "
        f"{', '.join(manifest['conditions']) or 'none'}; sides {manifest['profile']['size']} px, "
        f"batch {manifest['profile']['batch']}.",
        *((f"**Warning**: {without_prototypes(model)}.",) if not manifest["conditions"] else ()),
        "## Targets",
        table(("target", "version", "precisions", "compute capabilities", "engines"), targets, markdown=True),
        "Engines were built and their inputs and outputs recorded; none was run on a GPU by this command.",
        "## Parity",
        parity_table(figures, markdown=True, paths=("auto", *manifest["conditions"])),
        f"Modules kept in float32 in fp16: {', '.join(fp32_modules) or 'none'}.",
        "## Cost",
        f"One image of {costs.SIDE} x {costs.SIDE} px, before and after the exact simplifications. MB moved: what "
        "the operators read and write one by one in float32, weights included.",
        costs.section(json.loads(simplified.read_text())["graphs"]),
        *(summary.section(precision, plot.PLOT) if precision else ()),
        "## Photographs",
        *(
            f"{name}, degraded and restored (condition `auto`):\n\n![{name}](report/{p.name})"
            for name, p in images.items()
        ),
        "## Files",
        table(("file", "MB", "seconds", "layers"), files, "lrrr", markdown=True),
    ]
    name = "report.md"
    cache.path(name).write_text("\n\n".join(sections) + "\n")
    cache.record(name, {"figures": len(figures)}, 0)


def _decibel(value: float) -> str:
    return "exact" if value == math.inf else f"{value:.1f}"
