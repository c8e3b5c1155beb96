"""The graphs one by one: what the exact simplifications save, and what conditional LoRA costs a plain UNet.

    python benchmarks/graphs.py
    python benchmarks/graphs.py --model build/sd21 --after --backends openvino \\
           --graphs unet_plain unet_merged unet_dynamic

For each graph of a model two are traced, as it is loaded and as an export simplifies it, and run in turn, in float32,
on one image; `unet_plain` is the base's own UNet, without LoRA. Two tables, and one JSON file: operators, parameters,
multiply-adds and bytes before and after; milliseconds, with the ratios to PyTorch eager, on the model as it is loaded
unless `--after` leaves that out, and of the UNets to each other.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

if __package__ in (None, ""):  # run as a script: imports start at the checkout's root and runtime/, not in this folder
    sys.path[:1] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "runtime")]

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from benchmarks.machine import facts, summary
from benchmarks.timing import Turns, measure, percentiles
from dod.checkpoint import load_model
from dod.errors import DODError
from dod.model import clora
from dod.model.dod import DOD, OneStepUNet
from dod_runtime.bundle.merge import new_arrays
from dod_runtime.bundle.safetensors import write_tensors
from dod_runtime.console import Parser, run_command, table
from dod_runtime.errors import UsageError, unknown
from export.errors import ExportError
from export.graphs import components, costs, trace
from export.graphs.simplify import simplify

PLAIN = "unet_plain"
NAMES = (*components.GRAPHS, PLAIN)
BACKENDS = ("torch", "onnxruntime", "openvino")
JSON = Path("build/graphs.json")
TURNS = Turns(seconds=60, warmup=1, least=5)
Run = Callable[[], object]
Opening = Callable[[], Run]
"""What is left to be done until a graph runs: all are opened when the model that they were traced from is let go."""


def parser() -> Parser:
    """The arguments of the command."""
    made = Parser(prog="python benchmarks/graphs.py", description=(__doc__ or "").split("\n")[0])
    made.add_argument("--model", default="mini", help="preset or checkpoint folder (default: %(default)s)")
    made.add_argument("--graphs", nargs="+", default=NAMES, metavar="NAME", help=f"some of {', '.join(NAMES)}")
    made.add_argument("--backends", nargs="+", default=BACKENDS, metavar="NAME", help=f"some of {', '.join(BACKENDS)}")
    made.add_argument("--size", type=int, default=512, help="side of the square image (default: %(default)s)")
    made.add_argument("--after", action="store_true", help="only the simplified graphs: half of the memory")
    made.add_argument("--seconds", type=float, default=TURNS.seconds, help="to measure (default: %(default)s)")
    made.add_argument("--runs", type=int, help="rounds to measure, in place of --seconds")
    made.add_argument("--num-threads", type=int, help="of the CPU (default: PyTorch's choice)")
    made.add_argument("--json", type=Path, default=JSON, help="default: %(default)s")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the command."""
    arguments = parser().parse_args(argv)
    for chosen, known in ((arguments.graphs, NAMES), (arguments.backends, BACKENDS)):
        for name in chosen:
            if name not in known:
                raise unknown("graph" if known is NAMES else "backend", name, known)
    if arguments.num_threads is not None and arguments.num_threads < 1:
        raise UsageError(f"--num-threads must be at least 1, not {arguments.num_threads}")
    if arguments.num_threads:
        torch.set_num_threads(arguments.num_threads)
    machine = facts()
    model = load_model(arguments.model)
    if arguments.size < 1 or arguments.size % model.preset.size_multiple:
        raise UsageError(f"--size {arguments.size}: the model takes multiples of {model.preset.size_multiple}")
    with tempfile.TemporaryDirectory() as scratch:
        counted, openings = collect(model, arguments, Path(scratch))
        del model
        runs = {key: openings.pop(key)() for key in list(openings)}
        measured = measure([visit(run) for run in runs.values()], replace(TURNS, **turns(arguments)), "graphs")
    times = {key: percentiles(series.parts["graph"])["p50"] for key, series in zip(runs, measured, strict=True)}
    rows = [dict(zip(("graph", "state", "backend"), key, strict=True)) | {"ms": ms} for key, ms in times.items()]
    print(summary(machine))
    print(f"\nOne image of {costs.SIDE} x {costs.SIDE} px:\n\n{costs.section(counted, markdown=False)}")
    print(f"\nOne image of {arguments.size} x {arguments.size} px, float32, medians in ms:\n\n{report(times)}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "machine": machine,
        "model": str(arguments.model),
        "size": arguments.size,
        "costs": counted,
        "times": rows,
    }
    arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{arguments.json}")
    return 0


def turns(arguments: Namespace) -> dict[str, Any]:
    """What of the timing was asked for."""
    return {"seconds": arguments.seconds, "runs": arguments.runs}


def collect(
    model: DOD, arguments: Namespace, scratch: Path
) -> tuple[dict[str, dict[str, Any]], dict[tuple[str, str, str], Opening]]:
    """The counts, for JSON, and what is to be timed, by (graph, state, backend). The model is simplified on the way."""
    before = costs.costs(components.meta_copy(model), folded=False)
    runs: dict[tuple[str, str, str], Opening] = {}
    states = ("after",) if arguments.after else ("before", "after")
    for state in ("before", "after"):
        if PLAIN in arguments.graphs and state == "before":
            runs |= prepare(plain(model, arguments.size), PLAIN, "before", arguments, scratch)
        if state == "after":
            simplify(model)
        there = components.graphs_of(model) if state in states else ()
        for name in [name for name in arguments.graphs if name in there]:
            planned = components.plan(model, name, 1, (arguments.size, arguments.size), folded=state == "after")
            runs |= prepare(planned, name, state, arguments, scratch)
    return costs.rows(before, costs.costs(components.meta_copy(model))), runs


def plain(model: DOD, size: int) -> components.GraphPlan:
    """Stable Diffusion's UNet as it is published, in one step: no LoRA, no bias more, the embedding computed."""
    unet = OneStepUNet(
        cast(UNet2DConditionModel, clora.base_copy(model.unet.unet)), model.unet.prompt, model.preset.step
    )
    planned = components.plan(components.meta_copy(model), "unet_merged")
    side = size // model.preset.vae_factor
    return replace(
        planned, module=unet, inputs={"latent": torch.randn(1, planned.inputs["latent"].shape[1], side, side)}
    )


def prepare(
    planned: components.GraphPlan, name: str, state: str, arguments: Namespace, scratch: Path
) -> dict[tuple[str, str, str], Opening]:
    """One graph for each backend that was asked for."""
    found: dict[tuple[str, str, str], Opening] = {}
    onnx_path = scratch / f"{name}.{state}.onnx"
    if set(arguments.backends) - {"torch"}:
        write(planned, name, onnx_path)
    given = {key: value.numpy() for key, value in planned.inputs.items()}
    for backend in arguments.backends:
        if backend == "torch":
            # `simplify` works in place, and a plan may hold the model's own module
            module = planned.module if state == "after" else copy.deepcopy(planned.module)
            found[name, state, backend] = partial(torch_run, module, planned.inputs)
        else:
            opening = {"onnxruntime": ort_run, "openvino": openvino_run}[backend]
            found[name, state, backend] = partial(opening, onnx_path, given)
    return found


def write(planned: components.GraphPlan, name: str, path: Path) -> None:
    """Trace a graph with its weights beside it, as an export does."""
    weights = trace.named_weights(planned.module)
    shapes = {key: (np.dtype(np.float32), tuple(value.shape)) for key, value in weights.items()}
    stored = path.with_suffix(".safetensors")
    write_tensors(stored, shapes, (value.detach().numpy() for value in weights.values()))
    with torch.device("meta"):
        inputs = {key: torch.empty_like(value, device="meta") for key, value in planned.inputs.items()}
    empty = replace(
        planned, module=components.meta_copy(planned.module), inputs=inputs, axes={key: {} for key in inputs}
    )
    trace.trace_planned(empty, name, path, stored, trace.OPSETS["fp32"])


def torch_run(module: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> Run:
    def run() -> object:
        with torch.inference_mode():
            return module(**inputs)

    return run


def ort_run(path: Path, given: dict[str, np.ndarray]) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, given)


def openvino_run(path: Path, given: dict[str, np.ndarray]) -> Run:
    """With the convolutions and branches of the runtime's backend, which computes a UNet's kernels once and others' in
    each run."""
    import openvino

    from dod_runtime.backends.openvino import branches, winograd

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    core = openvino.Core()
    model = core.read_model(path)
    branches.join(model, new_arrays)
    winograd.rewrite(model, new_arrays if path.name.startswith("unet") else None)
    compiled = core.compile_model(model, "CPU", settings)
    request, values = compiled.create_infer_request(), {**given, **winograd.extra_inputs(compiled)}
    return lambda: request.infer(values)


def visit(run: Run) -> Callable[[], dict[str, float]]:
    """A run as `measure` takes it."""

    def timed() -> dict[str, float]:
        start = time.perf_counter()
        run()
        return {"graph": time.perf_counter() - start}

    return timed


def report(times: dict[tuple[str, str, str], float]) -> str:
    """Each graph's times by backend, before and after, with PyTorch's over a backend's, PyTorch's of the model as it is
    loaded where that was run; then the UNet's ratios."""
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
        lines += list(ratios({key[:2]: ms for key, ms in times.items() if key[2] == backend}, backend))
        if backend != "torch" and eager and (merged := times.get(("unet_merged", "after", backend))):
            speed = f"{eager / merged:.2f} x as fast as the plain UNet in PyTorch eager"
            lines.append(f"{backend}: a merged path is {speed}")
    return "\n".join(lines)


def ratios(times: dict[tuple[str, str], float], backend: str) -> Iterator[str]:
    """What a merged path costs beside a plain UNet, and the dynamic one beside it."""
    merged = times.get(("unet_merged", "after"))
    if merged and (base := times.get((PLAIN, "before"))):
        yield f"{backend}: a merged path costs {merged / base:.3f} x the plain UNet"
    if merged and (dynamic := times.get(("unet_dynamic", "after"))):
        yield f"{backend}: the dynamic path costs {dynamic / merged:.3f} x the merged one"


if __name__ == "__main__":
    raise SystemExit(run_command(main, also=(DODError, ExportError)))
