"""The table of `benchmarks/graphs.py`: times of single graphs, and ratios of the UNets."""

from __future__ import annotations

from collections.abc import Iterator

from dod_runtime.console import table

__all__ = ["BACKENDS", "PLAIN", "format_times"]

PLAIN = "unet_plain"
"""Name of the base's own UNet, without LoRA, as a graph."""
BACKENDS = ("torch", "onnxruntime", "openvino")
"""Backends that run a graph."""


def format_times(times: dict[tuple[str, str, str], float]) -> str:
    """Format the times of all graphs, and the ratios of the UNets.

    The factor after a time is the speed relative to PyTorch: of the graph as it is loaded if that was timed, else of
    the simplified graph.

    Args:
        times: milliseconds by graph, state (`before` or `after` simplification) and backend.

    Returns:
        A table and one line for each ratio.
    """
    cells = []
    for graph, state in dict.fromkeys((graph, state) for graph, state, _ in times):
        row: list[object] = [graph, "yes" if state == "after" else "no"]
        for backend in BACKENDS:
            ms = times.get((graph, state, backend))
            eager = times.get((graph, "before", "torch"), times.get((graph, state, "torch")))
            speed = f" ({eager / ms:.2f}x)" if ms and eager and backend != "torch" else ""
            row.append("-" if ms is None else f"{ms:.1f}{speed}")
        cells.append(row)
    lines = [table(["graph", "simplified", *BACKENDS], cells)]
    eager = times.get((PLAIN, "before", "torch"))
    for backend in BACKENDS:
        lines += list(_ratios({key[:2]: ms for key, ms in times.items() if key[2] == backend}, backend))
        if backend != "torch" and eager and (merged := times.get(("unet_merged", "after", backend))):
            speed = f"{eager / merged:.2f} x as fast as the plain UNet in PyTorch eager"
            lines.append(f"{backend}: a merged path is {speed}")
    return "\n".join(lines)


def _ratios(times: dict[tuple[str, str], float], backend: str) -> Iterator[str]:
    """Yield the cost of a merged path relative to the plain UNet, and of the dynamic path relative to a merged path."""
    merged = times.get(("unet_merged", "after"))
    if merged and (base := times.get((PLAIN, "before"))):
        yield f"{backend}: a merged path costs {merged / base:.3f} x the plain UNet"
    if merged and (dynamic := times.get(("unet_dynamic", "after"))):
        yield f"{backend}: the dynamic path costs {dynamic / merged:.3f} x the merged one"
