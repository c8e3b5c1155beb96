"""The models that `benchmarks/latency.py` measures: backends of the runtime, the PyTorch reference, and refits."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.latency_report import RefitResult
from dod_runtime.backends import ON_CPU, available_backends, check_precision
from dod_runtime.backends.base import BackendOptions, kept_sessions
from dod_runtime.bundle.bundle import Bundle
from dod_runtime.bundle.schema import REFITTED
from dod_runtime.errors import BackendError, UsageError
from dod_runtime.restorer import Restorer

if TYPE_CHECKING:
    from benchmarks.reference import TorchModel

__all__ = ["open_backends", "paths_at_once", "refits", "set_threads", "time_refits", "torch_models"]

REFIT_ROUNDS = 3
"""Number of counted rounds over the conditions when refits are timed."""
NEEDS_TORCH = "the PyTorch reference cannot be loaded ({}): pip install -e '.[export]'"


def set_threads(num_threads: int | None) -> int:
    """Set the number of CPU threads of PyTorch, which the backends get too.

    Args:
        num_threads: number of threads; None keeps PyTorch's choice.

    Returns:
        Number of threads.

    Raises:
        UsageError: PyTorch is missing.
    """
    try:
        import torch
    except ImportError as error:
        raise UsageError(NEEDS_TORCH.format(error)) from error
    if num_threads:
        torch.set_num_threads(num_threads)
    return torch.get_num_threads()


def open_backends(bundle: Bundle, arguments: Namespace, num_threads: int) -> tuple[list[Restorer], dict[str, str]]:
    """Open every chosen backend in each precision.

    Args:
        bundle: bundle to measure.
        arguments: arguments of the command.
        num_threads: number of CPU threads.

    Returns:
        Restorers, and the reason for each backend that is not run.

    Raises:
        BackendError: a backend named by `--backends` cannot run here, or none can.
        UsageError: a name or the batch size is invalid.
    """
    options = {"device": arguments.device, "num_threads": num_threads}
    largest = bundle.manifest.profile.batch[2]
    if arguments.batch_size > largest:
        raise UsageError(
            f"--batch-size {arguments.batch_size}: this bundle takes at most {largest}; rebuild it with --max-batch"
        )
    if arguments.backends:
        pairs = dict.fromkeys((name, precision) for precision in arguments.precision for name in arguments.backends)
        return [Restorer(bundle, backend=name, precision=precision, **options) for name, precision in pairs], {}
    restorers: list[Restorer] = []
    not_run: dict[str, str] = {}
    for precision in dict.fromkeys(arguments.precision):
        check_precision(precision, bundle)
        asked = BackendOptions(arguments.device, precision, num_threads)
        for name, reason in available_backends(bundle, asked).items():
            if reason is None and name in ON_CPU and any(on_gpu(each) for each in restorers):
                reason = "a GPU backend can run here; name both with --backends to measure this one too"
            try:
                if reason is None:
                    restorers.append(Restorer(bundle, backend=name, precision=precision, **options))
            except BackendError as error:
                reason = str(error)
            if reason is not None:
                not_run[name if len(arguments.precision) == 1 else f"{name} {precision}"] = reason
    if not restorers:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in not_run.items())
        raise BackendError(f"no backend can run this bundle here: {reasons}")
    return restorers, not_run


def on_gpu(restorer: Restorer) -> bool:
    """Return whether a restorer computes on a GPU."""
    return restorer.backend not in ON_CPU


def torch_models(bundle: Bundle, restorers: Sequence[Restorer], arguments: Namespace) -> list[TorchModel]:
    """Load PyTorch on each device that a backend runs on.

    Args:
        bundle: bundle to measure.
        restorers: restorers of the bundle.
        arguments: arguments of the command.

    Returns:
        Models; the first is in fp32 and is the reference.

    Raises:
        UsageError: PyTorch or a library of the model is missing.
        BundleError: the bundle was built from another checkpoint.
    """
    try:
        import torch

        from benchmarks.reference import TorchModel, load_reference
    except ImportError as error:
        raise UsageError(NEEDS_TORCH.format(error)) from error
    devices = {"cuda" if on_gpu(each) and torch.cuda.is_available() else "cpu" for each in restorers}
    if "cuda" in devices:
        torch.cuda.set_device(arguments.device)
    model = load_reference(bundle, arguments.checkpoint, arguments.base, arguments.ddpm)
    fp16 = bundle.manifest.precisions.get("fp16")
    fp32_modules = fp16.fp32_modules if fp16 else None
    made = []
    for device in sorted(devices):
        wanted = arguments.torch or (("fp32",) if device == "cpu" else ("fp32", "fp16"))
        made += [TorchModel(model, device, precision, fp32_modules) for precision in dict.fromkeys(("fp32", *wanted))]
    return made


def refits(restorer: Restorer) -> bool:
    """Return whether a restorer refits one engine with the weights of the condition.

    Args:
        restorer: restorer of a bundle.
    """
    target = restorer.bundle.manifest.targets.get(restorer.backend)
    return target is not None and REFITTED in target.engines


def time_refits(restorer: Restorer, conditions: Sequence[str], pixels: np.ndarray) -> RefitResult:
    """Time refits between conditions, and compare the images of each condition before and after the others.

    Args:
        restorer: restorer that refits.
        conditions: two conditions or more.
        pixels: image to restore, uint8 [H, W, 3].

    Returns:
        Times and the verdict.
    """
    seconds: list[float] = []
    images: dict[str, np.ndarray] = {}
    same = True
    for round_index in range(1 + REFIT_ROUNDS):
        for condition in conditions:
            start = time.perf_counter()
            restorer.warmup(condition, size=pixels.shape[:2])
            seconds.append(time.perf_counter() - start)
            restored = np.asarray(restorer.restore(pixels, condition=condition))
            if round_index:  # kernels of this shape may still be compiled in the first round
                same = same and np.array_equal(images.setdefault(condition, restored), restored)
    return RefitResult(restorer.backend, restorer.precision, seconds[len(conditions) :], same)


def paths_at_once(bundle: Bundle, restorers: Sequence[Restorer]) -> int:
    """Return the number of merged UNets that a backend keeps loaded; more would be reloaded between two runs.

    Args:
        bundle: bundle to measure.
        restorers: restorers of the bundle.
    """
    if any(map(refits, restorers)):
        return 1
    manifest = bundle.manifest
    sizes = [manifest.files[each.weights["unet_merged"]].bytes for each in manifest.precisions.values()]
    return kept_sessions(max(sizes))
