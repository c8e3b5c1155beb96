"""Cost of single graphs: the effect of the exact simplifications, and of conditional LoRA compared with a plain UNet.

    python benchmarks/graphs.py
    python benchmarks/graphs.py --checkpoint build/sd21 --after --backends openvino \\
           --graphs unet_plain unet_merged unet_dynamic

Every graph of a model is traced twice, as it is loaded and as an export simplifies it. All run in turn on one image in
fp32; `unet_plain` is the base's own UNet, without LoRA. The first table has operators, parameters, multiply-adds and
bytes before and after; the second has milliseconds, the speed relative to PyTorch eager on the model as it is loaded
(not with `--after`), and the ratios of the UNets. Both are written as JSON.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

if __package__ in (None, ""):  # run as a script: import from the checkout's root and runtime/, not from this folder
    sys.path[:1] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "runtime")]

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from benchmarks.common_options import benchmark_parser, check_at_least_one
from benchmarks.graph_report import BACKENDS, PLAIN, format_times
from benchmarks.json_file import write_json
from benchmarks.machine import machine_info, machine_summary
from benchmarks.timing import Rounds, measure, percentiles
from dod.checkpoint import load_model
from dod.errors import DODError
from dod.model import clora
from dod.model.dod import DOD, OneStepUNet
from dod_runtime.bundle.merge import new_arrays
from dod_runtime.bundle.safetensors import write_tensors
from dod_runtime.console import Parser, run_command
from dod_runtime.errors import UsageError, unknown
from export.errors import ExportError
from export.graphs import components, costs, trace
from export.graphs.simplify import simplify

__all__ = ["main", "parser"]

GRAPH_NAMES = (*components.GRAPHS, PLAIN)
JSON = Path("build/graphs.json")
ROUNDS = Rounds(seconds=60, warmup=1, min_rounds=5)
GraphRun = Callable[[], object]
"""Function that runs a graph once."""
GraphLoader = Callable[[], GraphRun]
"""Function that loads a graph. Graphs are loaded once the model that they were traced from is released."""


def parser() -> Parser:
    """Return the command's parser."""
    made = benchmark_parser("graphs", __doc__ or "")
    inputs = made.add_argument_group("input")
    inputs.add_argument(
        "--checkpoint",
        default="mini",
        metavar="NAME_OR_FOLDER",
        help="checkpoint folder, or name or folder of a preset (default: %(default)s)",
    )
    inputs.add_argument(
        "--graphs",
        nargs="+",
        default=GRAPH_NAMES,
        metavar="NAME",
        help=f"graphs to measure, of {', '.join(GRAPH_NAMES)} (default: all)",
    )
    inputs.add_argument(
        "--after", action="store_true", help="measure the simplified graphs only, in half of the memory (default: off)"
    )
    inputs.add_argument(
        "--size",
        type=int,
        default=512,
        metavar="PIXELS",
        help="side of the square image in pixels (default: %(default)s)",
    )
    backends = made.add_argument_group("backends")
    backends.add_argument(
        "--backends",
        nargs="+",
        default=BACKENDS,
        metavar="NAME",
        help=f"backends to measure, of {', '.join(BACKENDS)} (default: all)",
    )
    backends.add_argument(
        "--num-threads", type=int, metavar="N", help="number of CPU threads (default: PyTorch's choice)"
    )
    measurement = made.add_argument_group("measurement")
    measurement.add_argument(
        "--seconds",
        type=float,
        default=ROUNDS.seconds,
        metavar="SECONDS",
        help="time to measure, in seconds (default: %(default)g)",
    )
    measurement.add_argument(
        "--runs", type=int, metavar="N", help="number of runs, instead of --seconds (default: off)"
    )
    output = made.add_argument_group("output")
    output.add_argument(
        "--json", type=Path, default=JSON, metavar="FILE", help="JSON file for all results (default: %(default)s)"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: arguments.

    Returns:
        Exit code 0.

    Raises:
        UsageError: an argument is invalid.
        ExportError: a graph cannot be traced.
    """
    arguments = parser().parse_args(argv)
    for kind, chosen, known in (
        ("graph", arguments.graphs, GRAPH_NAMES),
        ("backend", arguments.backends, BACKENDS),
    ):
        for name in chosen:
            if name not in known:
                raise unknown(kind, name, known)
    check_at_least_one(arguments, "size", "num-threads", "runs")
    if arguments.num_threads:
        torch.set_num_threads(arguments.num_threads)
    machine = machine_info()
    model = load_model(arguments.checkpoint)
    if arguments.size % model.preset.size_multiple:
        raise UsageError(f"--size {arguments.size}: the model takes multiples of {model.preset.size_multiple}")
    rounds = replace(ROUNDS, seconds=arguments.seconds, runs=arguments.runs)
    with tempfile.TemporaryDirectory() as scratch:
        counts, loaders = trace_all(model, arguments, Path(scratch))
        del model
        runs = {key: loaders.pop(key)() for key in list(loaders)}
        timings = measure([timed(run) for run in runs.values()], rounds, "graphs")
    times = {key: percentiles(each.parts["graph"])["p50"] for key, each in zip(runs, timings, strict=True)}
    rows = [dict(zip(("graph", "state", "backend"), key, strict=True)) | {"ms": ms} for key, ms in times.items()]
    print(machine_summary(machine))
    print(f"\nOne image of {costs.SIDE} x {costs.SIDE} px:\n\n{costs.section(counts, markdown=False)}")
    print(f"\nOne image of {arguments.size} x {arguments.size} px, fp32, medians in ms:\n\n{format_times(times)}")
    data = {"machine": machine, "checkpoint": str(arguments.checkpoint), "size": arguments.size}
    write_json(arguments.json, {**data, "costs": counts, "times": rows})
    print(f"\n{arguments.json}")
    return 0


def trace_all(
    model: DOD, arguments: Namespace, scratch: Path
) -> tuple[dict[str, dict[str, Any]], dict[tuple[str, str, str], GraphLoader]]:
    """Trace the chosen graphs before and after simplification; the model is simplified in place.

    Returns:
        Counts as JSON values, and loaders by (graph, state, backend).
    """
    before = costs.costs(components.meta_copy(model), folded=False)
    loaders: dict[tuple[str, str, str], GraphLoader] = {}
    states = ("after",) if arguments.after else ("before", "after")
    for state in ("before", "after"):
        if PLAIN in arguments.graphs and state == "before":
            loaders |= prepare(plain(model, arguments.size), PLAIN, "before", arguments, scratch)
        if state == "after":
            simplify(model)
        available = components.graphs_of(model) if state in states else ()
        for name in [name for name in arguments.graphs if name in available]:
            planned = components.plan(model, name, 1, (arguments.size, arguments.size), folded=state == "after")
            loaders |= prepare(planned, name, state, arguments, scratch)
    return costs.rows(before, costs.costs(components.meta_copy(model))), loaders


def plain(model: DOD, size: int) -> components.GraphPlan:
    """Plan the graph of Stable Diffusion's UNet as published: one step, no LoRA, no added bias, embedding computed."""
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
) -> dict[tuple[str, str, str], GraphLoader]:
    """Return the loader of one graph for each chosen backend."""
    found: dict[tuple[str, str, str], GraphLoader] = {}
    onnx_path = scratch / f"{name}.{state}.onnx"
    if set(arguments.backends) - {"torch"}:
        write(planned, name, onnx_path)
    inputs = {key: value.numpy() for key, value in planned.inputs.items()}
    for backend in arguments.backends:
        if backend == "torch":
            # `simplify` changes the model in place, and a plan may hold the model's own module
            module = planned.module if state == "after" else copy.deepcopy(planned.module)
            found[name, state, backend] = partial(torch_run, module, planned.inputs)
        else:
            loader = {"onnxruntime": onnxruntime_run, "openvino": openvino_run}[backend]
            found[name, state, backend] = partial(loader, onnx_path, inputs)
    return found


def write(planned: components.GraphPlan, name: str, path: Path) -> None:
    """Write a graph and its weights as an export does."""
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


def torch_run(module: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> GraphRun:
    """Load a graph in PyTorch eager."""

    def run() -> object:
        with torch.inference_mode():
            return module(**inputs)

    return run


def onnxruntime_run(path: Path, inputs: dict[str, np.ndarray]) -> GraphRun:
    """Load a graph in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)


def openvino_run(path: Path, inputs: dict[str, np.ndarray]) -> GraphRun:
    """Load a graph in OpenVINO, with the rewritten convolutions and branches of the runtime's backend.

    The backend transforms the kernels of a UNet once, and those of other graphs in each run.
    """
    import openvino

    from dod_runtime.backends.openvino import branches, winograd

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    core = openvino.Core()
    model = core.read_model(path)
    branches.join(model, new_arrays)
    winograd.rewrite(model, new_arrays if path.name.startswith("unet") else None)
    compiled = core.compile_model(model, "CPU", settings)
    request, values = compiled.create_infer_request(), {**inputs, **winograd.extra_inputs(compiled)}
    return lambda: request.infer(values)


def timed(run: GraphRun) -> Callable[[], dict[str, float]]:
    """Wrap a run so that it returns its seconds, as `measure` expects."""

    def run_once() -> dict[str, float]:
        start = time.perf_counter()
        run()
        return {"graph": time.perf_counter() - start}

    return run_once


if __name__ == "__main__":
    raise SystemExit(run_command(main, also=(DODError, ExportError)))
