"""Program that builds one engine. `export.engines.build` starts it for each engine; it is not meant to be imported.

Each engine has its own process, because a failed build breaks later ones in the same process and the native builder can
crash. The request is a JSON object in the first argument, the reply a JSON object on stdout; everything else goes to
stderr. The program imports nothing of this project and runs with -P, so the working directory and the names in this
folder do not matter. Polygraphy reads POLYGRAPHY_USE_TENSORRT_RTX at import; the parent sets it.
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

__all__ = ["BuildRefused", "TensorRTLibrary", "build", "check_profile", "main"]

DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "BOOL": "bool"}
"""NumPy names of the library's types. The other names only differ in case."""


class BuildRefused(Exception):
    """The library, or a check before it, refused the graph or the profile. The message is the reason."""


class TensorRTLibrary:
    """Adapter for `tensorrt` (10.12 to 11) and `tensorrt_rtx` that hides their differences.

    Args:
        module: The imported library.
    """

    def __init__(self, module: ModuleType) -> None:
        self.trt: Any = module

    def parse(self, onnx_path: str) -> tuple[Any, Any]:
        """Parse an ONNX file into a strongly typed network.

        Args:
            onnx_path: The graph, with its external data beside it.

        Returns:
            Builder and network.

        Raises:
            BuildRefused: If the parser refuses the graph, or the file holds none.
        """
        from polygraphy.backend.trt import create_network, get_trt_logger

        # Needed up to TensorRT 10, accepted and ignored in 11: the graph decides the precision.
        strongly_typed = hasattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
        builder, network = create_network(strongly_typed=strongly_typed)
        parser = self.trt.OnnxParser(network, get_trt_logger())
        if not parser.parse_from_file(onnx_path):
            raise BuildRefused(
                "; ".join(_describe(parser.get_error(i)) for i in range(parser.num_errors)) or "no reason given"
            )
        if network.num_outputs == 0:  # the parser accepts some files that are not ONNX as an empty graph
            raise BuildRefused("the file holds no graph with outputs")
        return builder, network

    def config(
        self, builder: Any, network: Any, profile: dict[str, list[list[int]]], capabilities: list[str], refit: bool
    ) -> Any:
        """Create the builder configuration: one profile, and TF32 off (RTX has it on by default).

        Args:
            builder: The builder.
            network: The parsed network.
            profile: Minimum, optimal and maximum shape of each input.
            capabilities: Compute capabilities to build for, empty for the GPU of this machine.
            refit: True if weights are refitted later. RTX compiles such an engine only for the GPU of this machine, so
                no capability is passed on.

        Returns:
            The configuration.
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
        """Allow a refit of the named weights, and of no others.

        Args:
            network: The parsed network.
            config: The builder configuration.
            names: Names of weights in the graph.

        Raises:
            BuildRefused: If the graph has no such weights.
        """
        for name in names:
            if not network.mark_weights_refittable(name):
                raise BuildRefused(f"the graph holds no weights {name!r} that can be refitted")
        if names:
            config.set_flag(self.trt.BuilderFlag.REFIT_INDIVIDUAL)

    def tf32(self, config: Any) -> bool:
        """Return True if a configuration allows TF32.

        Args:
            config: The builder configuration.

        Returns:
            The state of the flag.
        """
        return bool(config.get_flag(self.trt.BuilderFlag.TF32))


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Parse the graph, build the engine and write it to `request["engine"]`.

    Args:
        request: The parent's request, see `export.engines.build.EngineBuild`.

    Returns:
        Facts about the engine, the fields of `export.engines.build.EngineRecord` that the library knows.

    Raises:
        BuildRefused: If the graph or the profile is refused.
        OSError: If the engine cannot be written.
        PolygraphyException: If the build fails.
    """
    from polygraphy.backend.trt import engine_bytes_from_network

    library = TensorRTLibrary(importlib.import_module(request["module"]))
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
    """Check that the profile has shapes for every input, and for no other name.

    Polygraphy would use 1 for a missing size.

    Args:
        inputs: Name, dtype and shape of each input of the network.
        profile: Minimum, optimal and maximum shape of each input.

    Raises:
        BuildRefused: If a name, a rank or a fixed size differs.
    """
    names = [tensor["name"] for tensor in inputs]
    if set(names) != set(profile):
        raise BuildRefused(f"the profile is for {sorted(profile)}, the graph's inputs are {sorted(names)}")
    for tensor in inputs:
        for shape in profile[tensor["name"]]:
            fits = len(shape) == len(tensor["shape"]) and all(
                size == fixed or isinstance(fixed, str) or fixed == -1
                for size, fixed in zip(shape, tensor["shape"], strict=True)
            )
            if not fits:
                raise BuildRefused(
                    f"the profile's shape {shape} does not fit the input {tensor['name']} {tensor['shape']}"
                )


def _describe(error: Any) -> str:
    """Return one line for an error of the ONNX parser: the node and the parser's own message."""
    # without a GPU every message mentions cudaError 35, which is never the reason
    lines = [line for line in error.desc().splitlines() if line and "cudaError 35" not in line]
    where = f"node {error.node_name()} ({error.node_operator()}): " if error.node_name() else ""
    return where + " ".join(lines)


def _tensor(tensor: Any) -> dict[str, Any]:
    """Return name, dtype and shape of an input or output. A dynamic size is its name if it has one, else -1."""
    dtype = tensor.dtype.name
    shape = [tensor.get_dimension_name(axis) or size for axis, size in enumerate(tensor.shape)]
    return {"name": tensor.name, "dtype": DTYPES.get(dtype, dtype.lower()), "shape": shape}


def _peak_bytes() -> int | None:
    """Return the peak memory of this process, None if the system does not report it.

    getrusage does not fit: it includes the parent's memory from before this program replaced its copy.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), None)


def _end_with_parent(parent: str) -> None:
    """Make Ctrl-C and, on Linux, the parent's death end this process at once, even inside the native builder."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the native builder never returns to Python's own handler
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
        if os.getppid() != int(parent):
            sys.exit(1)


def main() -> int:
    """Read the request, build, and write the reply.

    Returns:
        Exit code: 0 if the engine was built, else 1.
    """
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
    except (BuildRefused, PolygraphyException, ImportError) as error:
        answer = {"refused": " ".join(str(error).split())}
    except MemoryError:
        answer = {"refused": "out of memory (std::bad_alloc)"}
    with reply:
        json.dump(answer, reply)
    return 0 if "built" in answer else 1


if __name__ == "__main__":
    sys.exit(main())
