"""`dod-runtime doctor [BUNDLE]`: check which backends can run on this machine, and why others cannot."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .. import __version__
from ..backends import BACKENDS, BackendOptions, available_backends, machine_reason
from ..backends.gpu import find_gpu
from ..backends.tensorrt.engine import cache_folder
from ..bundle.bundle import Bundle
from ..console import Parser, facts_list, table
from ..errors import BackendError

__all__ = ["conflicts", "cpu_features", "main", "parser", "writable_reason"]

DISTRIBUTIONS = {
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt-rtx-cu13",),
    "onnxruntime_cuda": ("onnxruntime-gpu",),
    "openvino": ("openvino",),
    "onnxruntime_cpu": ("onnxruntime", "onnxruntime-gpu"),
}
"""Distributions that can provide the library of each backend."""
FEATURES = {
    "avx2": "AVX2",
    "fma": "FMA",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX BF16",
    "amx_int8": "AMX INT8",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "BF16",
    "i8mm": "I8MM",
}
"""Flags of /proc/cpuinfo that matter for the speed or the precisions of backends, and their names."""
CPUINFO = Path("/proc/cpuinfo")


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    made = Parser(
        prog="dod-runtime doctor",
        description="Check which backends can run on this machine, and why others cannot. Exit codes: 0 if one or more "
        "backends can run, 1 if none can, 2 for a wrong argument or a bundle that cannot be opened.",
    )
    made.add_argument(
        "bundle", type=Path, nargs="?", help="folder of a bundle that the backends have to run (default: check without)"
    )
    gpu = made.add_argument_group("GPU")
    gpu.add_argument(
        "--device", type=int, default=0, metavar="N", help="index of the GPU to check (default: %(default)s)"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: arguments.

    Returns:
        0 where some backend can run, else 1.
    """
    arguments = parser().parse_args(argv)
    bundle = Bundle.open(arguments.bundle) if arguments.bundle else None
    options = BackendOptions(device=arguments.device)
    reasons = available_backends(bundle, options) if bundle else {n: machine_reason(n, options) for n in BACKENDS}
    print(_machine(arguments.device))
    rows = [(name, _version(DISTRIBUTIONS[name]), reason or "available") for name, reason in reasons.items()]
    print(f"\n{table(['backend', 'version', 'status'], rows)}")
    problems = [*conflicts(), *filter(None, map(writable_reason, (cache_folder(), _temporary_folder())))]
    if problems:
        print("\n" + "\n".join(f"problem: {problem}" for problem in problems))
    first = next((name for name, reason in reasons.items() if reason is None), None)
    what = f"run {bundle.manifest.name}" if bundle else "run"
    print(f"\n{first} can {what}: `auto` takes it." if first else f"\nNo backend can {what} on this machine.")
    return 0 if first else 1


def cpu_features() -> list[str]:
    """Return the instruction sets of this CPU that matter for the backends; empty where the system does not say."""
    try:
        lines = CPUINFO.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    flags = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "").split()
    return [name for flag, name in FEATURES.items() if flag in flags]


def conflicts() -> list[str]:
    """Return the conflicts between installed distributions, each with its remedy."""
    pair = "onnxruntime", "onnxruntime-gpu"
    if not all(_installed(name) for name in pair):
        return []
    return [
        f"{pair[0]} {_installed(pair[0])} and {pair[1]} {_installed(pair[1])} are both installed and overwrite each "
        f"other: pip uninstall -y {pair[0]} {pair[1]}, then install one of them"
    ]


def writable_reason(folder: Path | None) -> str | None:
    """Return the reason why files cannot be written to a folder, None where they can.

    Args:
        folder: the folder, which need not exist; None where there is none.
    """
    if folder is None:
        return "no temporary folder is writable: set TMPDIR to a folder that is"
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return f"{folder} is not writable: {error.strerror or error}"


def _machine(device: int) -> str:
    temporary = _temporary_folder()
    free = f", {shutil.disk_usage(temporary).free / 1e9:.1f} GB free" if temporary else ""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {
        "dod-runtime": f"{__version__}, Python {platform.python_version()}, {platform.platform()}",
        "libraries": ", ".join(f"{name} {_installed(name) or 'missing'}" for name in ("numpy", "pillow")),
        "CPU": f"{threads} of {os.cpu_count()} threads usable; {', '.join(cpu_features()) or 'features unknown'}",
        "GPU": _gpu(device),
        "cache": str(cache_folder()),
        "temporary": f"{temporary}{free}",
    }
    return facts_list(facts)


def _gpu(device: int) -> str:
    try:
        gpu = find_gpu(device)
    except BackendError as error:
        return str(error)
    return f"{gpu.name}, compute capability {gpu.compute_capability}, the driver supports CUDA {gpu.driver_cuda}"


def _temporary_folder() -> Path | None:
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        return None


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _version(distributions: Sequence[str]) -> str | None:
    return next(filter(None, map(_installed, distributions)), None)
