"""What a build shows: the parity table, the pictures, and the bundle's report.md."""

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
from export.cache import Workshop
from export.graphs import costs
from export.graphs.conditions import without_prototypes
from export.parity.compare import GATES, Figure, unchecked
from export.precision import report as precision_report

HEADERS = ("path", "component", "step", "max abs", "SNR dB", "PSNR dB", "budget", "")


def parity_table(figures: Sequence[Figure], markdown: bool = False, paths: Iterable[str] = ()) -> str:
    """The worst figure over the pictures for each path, component and step, in the order they were measured.

    paths: the condition paths of the bundle. Those that were not checked are listed.
    """
    groups: dict[tuple[str, str, str], list[Figure]] = {}
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
                members[0].budget or "",
                _verdict(members),
            )
        )
    witnesses = {figure.step: figure.witness for figure in figures}
    notes = [f"{step}: {witness}" for step, witness in witnesses.items()]
    pictures = len({figure.picture for figure in figures})
    head = f"Against PyTorch fp32, the worst of {pictures} photographs (components alone on the first):"
    sections = [head, table(HEADERS, rows, "lllrrrll", markdown=markdown), "\n".join(notes)]
    if missing := unchecked(figures, paths):
        sections.append(f"NOT CHECKED on any sample: condition paths {', '.join(missing)}.")
    return "\n\n".join(sections)


def _verdict(members: Sequence[Figure]) -> str:
    passed = all(figure.passed for figure in members)
    if members[0].step in GATES and members[0].budget:
        return "ok" if passed else "missed: not offered"
    return "ok" if passed else "FAILED"


def write_figures(figures: Sequence[Figure], path: Path) -> None:
    """All figures as JSON."""
    path.write_text(json.dumps(rows(figures), indent=1) + "\n")


def rows(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """The figures for JSON, which has no infinity: where nothing differs, the decibels are null."""
    return [{k: None if v == math.inf and k != "max_abs" else v for k, v in asdict(each).items()} for each in figures]


def unchecked_rows(figures: Sequence[Figure], paths: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of the manifest's `parity` for condition paths that were not checked: no value, `passed` is null."""
    empty = dict.fromkeys(each.name for each in fields(Figure))
    stated = {"component": "chain", "step": "not checked", "witness": "no sample ran this path"}
    return [{**empty, **stated, "path": path} for path in unchecked(figures, paths)]


def read_figures(path: Path) -> list[Figure]:
    """What `write_figures` wrote."""
    return figures_of(json.loads(path.read_text()))


def figures_of(rows: Sequence[dict[str, Any]]) -> list[Figure]:
    """The figures of `rows`, read back."""
    figures = []
    for row in rows:
        for key in ("snr_db", "psnr_db") if row["component"] == "chain" else ("snr_db",):
            row[key] = math.inf if row[key] is None else row[key]
        figures.append(Figure(**row))
    return figures


def write_comparison(degraded: np.ndarray, restored: np.ndarray, path: Path) -> None:
    """The degraded picture and the restored one side by side, as PNG.

    degraded: float32 [H, W, 3] in [-1, 1]; restored: float32 [1, 3, at least H, at least W], the same.
    """
    height, width = degraded.shape[:2]
    both = np.concatenate([degraded, restored[0, :, :height, :width].transpose(1, 2, 0)], axis=1)
    Image.fromarray(np.clip(np.round((both + 1) * 127.5), 0, 255).astype(np.uint8)).save(path, optimize=True)


def write(
    shop: Workshop,
    manifest: Mapping[str, Any],
    figures: Sequence[Figure],
    pictures: Mapping[str, Path],
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
        for name, entry in sorted(shop.used.items())
        if not name.startswith("report/")
    ]
    model, islands = manifest["model"], manifest["precisions"].get("fp16", {}).get("fp32_islands", [])
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
        f"Modules kept in float32 in fp16: {', '.join(islands) or 'none'}.",
        "## Cost",
        f"One picture of {costs.SIDE} x {costs.SIDE} px, before and after the exact simplifications. MB moved: what "
        "the operators read and write one by one in float32, weights included.",
        costs.section(json.loads(simplified.read_text())["graphs"]),
        *(precision_report.section(precision, precision_report.PLOT) if precision else ()),
        "## Photographs",
        *(
            f"{name}, degraded and restored (condition `auto`):\n\n![{name}](report/{p.name})"
            for name, p in pictures.items()
        ),
        "## Files",
        table(("file", "MB", "seconds", "layers"), files, "lrrr", markdown=True),
    ]
    name = "report.md"
    shop.path(name).write_text("\n\n".join(sections) + "\n")
    shop.record(name, {"figures": len(figures)}, 0)


def _decibel(value: float) -> str:
    return "exact" if value == math.inf else f"{value:.1f}"
