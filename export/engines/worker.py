"""Builds one engine. Not a module to import: a program that `export.engines.build` starts for each engine.

A failed build poisons the later ones of its process, and the native builder can take its process down, so each engine
has its own. The request is a JSON object in the first argument, the reply one on stdout; all else is said on stderr.
It imports nothing of this project and is started with -P, so neither the working directory nor the names in this folder
matter to it. Polygraphy reads POLYGRAPHY_USE_TENSORRT_RTX when it is imported: the parent sets it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "BOOL": "bool"}  # others: the name in lower case


class Refused(Exception):
    """The library, or a check before it, refused the graph or the profile. The message says why."""


class Library:
    """All that differs between `tensorrt` (10.12 to 11) and `tensorrt_rtx`, given the module of either."""

    def __init__(self, module: ModuleType) -> None:
        self.trt: Any = module

    def parse(self, onnx_path: str) -> tuple[Any, Any]:
        """ONNX file, with its external data beside it, to (builder, strongly typed network). Raises Refused."""
        from polygraphy.backend.trt import create_network, get_trt_logger

        # Needed up to TensorRT 10, accepted and ignored in 11: precision is what the graph says.
        strongly_typed = hasattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
        builder, network = create_network(strongly_typed=strongly_typed)
        parser = self.trt.OnnxParser(network, get_trt_logger())
        if not parser.parse_from_file(onnx_path):
            raise Refused(
                "; ".join(_describe(parser.get_error(i)) for i in range(parser.num_errors)) or "no reason given"
            )
        if network.num_outputs == 0:  # what is no ONNX at all can pass the parser as an empty graph
            raise Refused("the file holds no graph with outputs")
        return builder, network

    def config(
        self, builder: Any, network: Any, profile: dict[str, list[list[int]]], capabilities: list[str], refit: bool
    ) -> Any:
        """The builder configuration: one profile, TF32 off (RTX has it on by default), capabilities where named.

        refit: weights are exchanged later. RTX compiles such an engine on a GPU, for it alone: no capability is named.
        """
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
        from polygraphy.backend.trt import CreateConfig, Profile

        shapes = Profile()
        for name, (smallest, usual, largest) in profile.items():
            shapes.add(name, tuple(smallest), tuple(usual), tuple(largest))
        if refit and capabilities:
            create = CreateConfigRTX(profiles=[shapes], use_gpu=True)
        elif capabilities:
            pairs = [tuple(int(number) for number in capability.split(".")) for capability in capabilities]
            create = CreateConfigRTX(profiles=[shapes], compute_capabilities=pairs)
        else:
            create = CreateConfig(profiles=[shapes])
        config = create(builder, network)
        config.clear_flag(self.trt.BuilderFlag.TF32)
        return config

    def make_refittable(self, network: Any, config: Any, names: list[str]) -> None:
        """Lets these weights, by the graph's names, and no others be exchanged in the engine. Raises Refused."""
        for name in names:
            if not network.mark_weights_refittable(name):
                raise Refused(f"the graph holds no weights {name!r} that could be exchanged")
        if names:
            config.set_flag(self.trt.BuilderFlag.REFIT_INDIVIDUAL)

    def tf32(self, config: Any) -> bool:
        """Whether this configuration allows TF32."""
        return bool(config.get_flag(self.trt.BuilderFlag.TF32))


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Parse, build, write request["engine"], return the facts of it. Raises Refused, OSError, PolygraphyException."""
    from polygraphy.backend.trt import engine_bytes_from_network

    library = Library(importlib.import_module(request["module"]))
    builder, network = library.parse(request["onnx"])
    inputs = [_tensor(network.get_input(i)) for i in range(network.num_inputs)]
    check_profile(inputs, request["profile"])
    refittable = request["refittable"]
    config = library.config(builder, network, request["profile"], request["compute_capabilities"], bool(refittable))
    library.make_refittable(network, config, refittable)
    start = time.perf_counter()
    engine = memoryview(engine_bytes_from_network((builder, network), config=config))
    seconds = time.perf_counter() - start
    Path(request["engine"]).write_bytes(engine)
    return {
        "version": library.trt.__version__,
        "bytes": engine.nbytes,
        "seconds": seconds,
        "peak_bytes": _peak_bytes(),
        "layers": network.num_layers,
        "inputs": inputs,
        "outputs": [_tensor(network.get_output(i)) for i in range(network.num_outputs)],
        "tf32": library.tf32(config),
    }


def check_profile(inputs: list[dict[str, Any]], profile: dict[str, list[list[int]]]) -> None:
    """Every input with its three shapes, of its rank and its fixed sizes, and no other name. Raises Refused.

    Polygraphy takes 1 for every size it is not told.
    """
    names = [tensor["name"] for tensor in inputs]
    if set(names) != set(profile):
        raise Refused(f"the profile is for {sorted(profile)}, the graph's inputs are {sorted(names)}")
    for tensor in inputs:
        for shape in profile[tensor["name"]]:
            fits = len(shape) == len(tensor["shape"]) and all(
                size == fixed or isinstance(fixed, str) or fixed == -1
                for size, fixed in zip(shape, tensor["shape"], strict=True)
            )
            if not fits:
                raise Refused(f"the profile's shape {shape} does not fit the input {tensor['name']} {tensor['shape']}")


def _describe(error: Any) -> str:
    """One line for one of the ONNX parser's errors: which node, and the parser's own words."""
    lines = [line for line in error.desc().splitlines() if line and "cudaError 35" not in line]  # no GPU: no reason
    where = f"node {error.node_name()} ({error.node_operator()}): " if error.node_name() else ""
    return where + " ".join(lines)


def _tensor(tensor: Any) -> dict[str, Any]:
    """Name, dtype and shape of a network's input or output; a size is its name where it has one, -1 where unknown."""
    dtype = tensor.dtype.name
    shape = [tensor.get_dimension_name(axis) or size for axis, size in enumerate(tensor.shape)]
    return {"name": tensor.name, "dtype": DTYPES.get(dtype, dtype.lower()), "shape": shape}


def _peak_bytes() -> int | None:
    """The most memory that this process has held, or None where the system does not say.

    Not getrusage: its figure would include the parent, from before this program replaced its copy.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), None)


def _end_with_parent(parent: str) -> None:
    """Let Ctrl-C and (on Linux) the parent's death end this process at once, also inside the native builder."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the native builder never returns to Python's own handler
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
        if os.getppid() != int(parent):
            sys.exit(1)


def main() -> int:
    """Read the request, answer it, return the exit code."""
    request = json.loads(sys.argv[1])
    _end_with_parent(request["parent"])
    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the native libraries write on stdout
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    G_LOGGER.colors = False
    try:
        answer: dict[str, Any] = {"built": build(request)}
    except OSError as error:
        answer = {"errno": error.errno, "reason": error.strerror or str(error)}
    except (Refused, PolygraphyException, ImportError) as error:
        answer = {"refused": " ".join(str(error).split())}
    except MemoryError:
        answer = {"refused": "out of memory (std::bad_alloc)"}
    with reply:
        json.dump(answer, reply)
    return 0 if "built" in answer else 1


if __name__ == "__main__":
    sys.exit(main())
