"""`dod-runtime info BUNDLE`: describe a bundle from its manifest, without a backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..bundle.bundle import Bundle
from ..bundle.schema import SCHEMA, Manifest, TargetEntry
from ..condition_path import AUTO
from ..console import Parser, facts_list, table

__all__ = ["main", "parity_verdict", "parser"]


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser(prog="dod-runtime info", description="Describe a bundle from its manifest.")
    made.add_argument(
        "bundle", type=Path, nargs="?", default=Path("build/mini"), help="folder of the bundle (default: %(default)s)"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: arguments.

    Returns:
        0.
    """
    bundle = Bundle.open(parser().parse_args(argv).bundle)
    manifest = bundle.manifest
    print(facts_list(_facts(bundle)))
    targets = [
        (name, ", ".join(target.precisions), target.version or "-", _gpus(target), len(target.engines))
        for name, target in manifest.targets.items()
    ]
    print(f"\n{table(['target', 'precisions', 'version', 'GPU', 'engines'], targets, 'llllr')}")
    precisions = [
        (name, _megabytes(manifest, {*each.onnx.values(), *each.weights.values()}), ", ".join(each.fp32_modules) or "-")
        for name, each in manifest.precisions.items()
    ]
    print(f"\n{table(['precision', 'MB', 'modules kept in fp32'], precisions, 'lrl')}")
    files = [(name, _megabytes(manifest, [name])) for name in sorted(manifest.files)]
    print(f"\n{table(['file', 'MB'], files, 'lr')}")
    return 0


def parity_verdict(manifest: Manifest) -> str:
    """Return the outcome of the parity check that the export made, in one line.

    Args:
        manifest: manifest of the bundle.
    """
    rows = [row for row in manifest.parity if row.get("threshold") and not _left_out(manifest, row)]
    failed = [row for row in rows if not row.get("passed")]
    unchecked = sorted({str(row.get("path")) for row in manifest.parity if row.get("passed") is None})
    notes = [f"not checked on {', '.join(unchecked)}"] if unchecked else []
    left_out = sorted({str(row["step"]) for row in manifest.parity if _left_out(manifest, row)})
    notes += [f"not offered: {', '.join(left_out)}"] if left_out else []
    if failed:
        row = failed[0]
        verdict = (
            f"FAILED: {len(failed)} of {len(rows)} results are below their thresholds, first {row.get('step')} "
            f"on {row.get('image')} ({row.get('path')}), which needs {row['threshold']}"
        )
    else:
        verdict = f"passed: {len(rows)} results reach their thresholds" if rows else "not measured"
    return "; ".join([verdict, *notes])


def _left_out(manifest: Manifest, row: Mapping[str, Any]) -> bool:
    """Return True for a result of a precision that the bundle does not offer on a backend, such as `openvino bf16`."""
    backend, _, precision = str(row.get("step")).partition(" ")
    target = manifest.targets.get(backend)
    return target is not None and bool(precision) and precision not in target.precisions


def _facts(bundle: Bundle) -> dict[str, str]:
    manifest = bundle.manifest
    (least, usual, largest), (_, _, most) = manifest.profile.size, manifest.profile.batch
    model = ", ".join(f"{key} {str(value)[:16]}" for key, value in manifest.model.items() if isinstance(value, str))
    return {
        "bundle": f"{manifest.name} in {bundle.folder}, schema {SCHEMA}",
        "model": model or "-",
        "conditions": ", ".join([AUTO, *manifest.conditions]),
        "gate": "lets clean and blurred images bypass the model" if manifest.gated else "none",
        "sizes": f"{least} to {largest} px in multiples of {manifest.size_multiple} px, optimized for {usual} px; "
        "larger images are tiled",
        "batch size": f"1 to {most}",
        "files": f"{len(manifest.files)}, {_megabytes(manifest, manifest.files)} MB",
        "built with": ", ".join(f"{name} {version}" for name, version in manifest.tools.items()) or "-",
        "parity": parity_verdict(manifest),
    }


def _gpus(target: TargetEntry) -> str:
    return ", ".join(filter(None, (target.gpu, *target.compute_capabilities))) or "-"


def _megabytes(manifest: Manifest, names: Iterable[str]) -> str:
    return f"{sum(manifest.files[name].bytes for name in names) / 1e6:.3f}"
