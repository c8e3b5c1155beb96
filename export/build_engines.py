"""Build a bundle from a checkpoint: ONNX graphs, engines, condition values, and parity results against PyTorch.

    python export/build_engines.py --checkpoint mini --out build/mini --targets onnxruntime openvino tensorrt_rtx \\
           --precision fp32 fp16 --conditions haze rain --min-size 256 --opt-size 512 --max-size 1024 \\
           --opt-batch 1 --max-batch 4 --compute-capabilities 8.6 8.9 12.0

`dod-export build` is the same command.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script: imports start at the checkout's root and runtime/, not in this folder
    sys.path[:1] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "runtime")]

from dod.errors import DODError
from dod_runtime.console import Parser, run_command
from dod_runtime.errors import UsageError, unknown
from export.engines.targets import (
    TARGETS,
    openvino_unavailable_reason,
    unavailable_reason,
    validate_capabilities,
    validate_refit,
)
from export.errors import ExportError
from export.options import BuildOptions

__all__ = ["choose_targets", "main", "options_of", "parser"]

CHECKPOINT = "mini"
CAPABILITIES = ("8.6", "8.9", "12.0")
TARGET_NAMES = ("onnxruntime", "openvino", *TARGETS)
PRECISIONS = ("fp32", "fp16")
MEASURED_PRECISIONS = ("bf16", "int8")
"""Precisions without graphs. Asking for one always ends the build with the measured result and without a bundle."""


def main(argv: Sequence[str] | None = None) -> int:
    """Build a bundle, or explain what a build would make.

    Args:
        argv: arguments, by default those of the process.

    Returns:
        The exit code.

    Raises:
        ExportError: a file could not be made, or a result is below its threshold; no bundle is written.
        UsageError: an argument is not valid.
    """
    arguments = parser().parse_args(argv)
    options = options_of(arguments)

    gc.disable()  # hundreds of thousands of objects that stay: the collector need not search them, now or at the end
    from export.pipeline import Build  # torch and diffusers take seconds: wrong arguments are refused before

    gc.freeze()
    gc.enable()

    build = Build(options, say=_ignore if arguments.quiet else _print)
    return build.explain() if options.explain else build.run()


def parser() -> Parser:
    """Return the parser. The defaults build the shipped model."""
    parser = Parser(
        prog="dod-export build",
        description="Build a bundle from a checkpoint: ONNX graphs, engines, condition values, and parity results.",
    )
    parser.add_argument("former_checkpoint", nargs="?", metavar="CHECKPOINT", help=argparse.SUPPRESS)

    model = parser.add_argument_group("model")
    model.add_argument(
        "--checkpoint",
        metavar="NAME_OR_FOLDER",
        help=f"checkpoint folder, or name or folder of a preset (default: {CHECKPOINT})",
    )
    model.add_argument("--base", metavar="FOLDER", help="Stable Diffusion base (default: the preset's)")
    model.add_argument("--ddpm", metavar="FOLDER", help="DDPM of the MFM (default: the preset's)")
    model.add_argument(
        "--conditions", nargs="+", metavar="NAME", help="condition paths to build (default: all of the checkpoint)"
    )

    bundle = parser.add_argument_group("bundle")
    bundle.add_argument(
        "--out", type=Path, default=Path("build/mini"), metavar="FOLDER", help="bundle to write (default: build/mini)"
    )
    bundle.add_argument(
        "--force",
        action="store_true",
        help="replace the bundle in --out also if it is of another model, or has conditions that this build leaves out "
        "(default: refuse)",
    )
    bundle.add_argument(
        "--explain",
        action="store_true",
        help="print why each file is cached or stale, and build nothing (default: build)",
    )

    target = parser.add_argument_group("targets and precision")
    target.add_argument(
        "--targets",
        nargs="+",
        metavar="TARGET",
        help=f"any of {', '.join(TARGET_NAMES)} (default: all that can be built on this machine)",
    )
    target.add_argument(
        "--precision",
        nargs="+",
        default=list(PRECISIONS),
        metavar="PRECISION",
        help="precisions of the graphs: fp32, fp16 (bf16, int8: print their PSNR, then stop without a bundle); engines "
        "use fp16 if it is among them (default: fp32 fp16)",
    )
    target.add_argument(
        "--fp32-modules",
        nargs="*",
        metavar="MODULE",
        help="modules kept in fp32 in the fp16 graphs, by the names that report.md lists; no name: none (default: a "
        "small set, found by ranking and bisection, that keeps fp16 3 dB above its threshold)",
    )
    target.add_argument(
        "--compute-capabilities",
        nargs="+",
        metavar="X.Y",
        help=f"GPUs that tensorrt_rtx engines are built for (default: {' '.join(CAPABILITIES)})",
    )
    target.add_argument(
        "--engine-conditions",
        nargs="*",
        metavar="NAME",
        help="conditions that get a TensorRT engine, an empty list for none; the others cannot run on TensorRT and "
        "TensorRT-RTX (default: every condition that is built)",
    )
    target.add_argument(
        "--refit",
        action="store_true",
        help="build one merged UNet engine for all conditions, whose weights the runtime replaces when the condition "
        "changes; needs the GPU that will run it (default: one engine for each condition)",
    )

    sizes = parser.add_argument_group("image and batch sizes")
    for name, default, what in (
        ("min", 256, "minimum side that graphs and TensorRT profiles take; smaller images are padded"),
        ("opt", 512, "optimal side, which TensorRT tunes engines for"),
        ("max", 1024, "maximum side that graphs and TensorRT profiles take; larger images are restored in tiles"),
    ):
        sizes.add_argument(
            f"--{name}-size",
            type=int,
            default=default,
            metavar="PIXELS",
            help=f"{what}; in px, a multiple of the model's size multiple, 64 for mini (default: {default})",
        )
    for name, default, what in (
        ("opt", 1, "optimal batch size, which TensorRT tunes engines for"),
        ("max", 4, "maximum number of images in a batch"),
    ):
        sizes.add_argument(
            f"--{name}-batch",
            type=int,
            default=default,
            metavar="N",
            help=f"{what} (default: {default})",
        )
    sizes.add_argument("--batch", type=int, nargs=2, metavar=("OPT", "MAX"), help=argparse.SUPPRESS)

    measurement = parser.add_argument_group("calibration and work")
    measurement.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="folder of degraded images that precision and parity are measured on; a condition path is checked on the "
        "images whose names begin with its condition (default: docs/samples)",
    )
    measurement.add_argument(
        "--workers",
        type=int,
        default=2,
        metavar="N",
        help="number of graphs traced, or engines built, at a time (default: 2)",
    )
    return parser


def options_of(arguments: argparse.Namespace) -> BuildOptions:
    """Return the options of a build, checked as far as no model is needed.

    Args:
        arguments: parsed arguments.

    Raises:
        UsageError: a target or precision is unknown or cannot be built here, or options contradict each other.
        TargetError: a compute capability is unknown or does not fit.
    """
    for name in arguments.precision:
        if name not in (*PRECISIONS, *MEASURED_PRECISIONS):
            raise unknown("precision", name, (*PRECISIONS, *MEASURED_PRECISIONS))
    if arguments.workers < 1:
        raise UsageError(f"--workers must be at least 1, not {arguments.workers}")
    if arguments.checkpoint and arguments.former_checkpoint:
        raise UsageError(f"name one checkpoint: {arguments.checkpoint} or {arguments.former_checkpoint}")
    precisions = tuple(name for name in PRECISIONS if name in arguments.precision)
    if arguments.explain and not precisions:
        raise UsageError(f"--explain needs a precision that is written: {' or '.join(PRECISIONS)}")
    targets, left_out = choose_targets(arguments.targets, arguments.precision)
    if importlib.util.find_spec("onnxruntime") is None:
        raise UsageError("parity is checked with ONNX Runtime, which is not installed: pip install onnxruntime")
    fp16 = "fp16" in precisions
    capabilities, asked = (), arguments.compute_capabilities
    if arguments.refit:
        if arguments.engine_conditions is not None:
            raise UsageError("--refit builds one merged UNet for all conditions: leave --engine-conditions out")
        capabilities = validate_refit(targets, asked, fp16=fp16)
    elif "tensorrt_rtx" in targets:
        capabilities = validate_capabilities(CAPABILITIES if asked is None else asked, fp16=fp16)
    for name, reason in left_out.items():
        print(f"target {name} is left out: {reason}")
    return BuildOptions(
        checkpoint=arguments.checkpoint or arguments.former_checkpoint or CHECKPOINT,
        base=arguments.base,
        ddpm=arguments.ddpm,
        out=arguments.out,
        targets=targets,
        precisions=precisions,
        measured_precisions=tuple(name for name in MEASURED_PRECISIONS if name in arguments.precision),
        conditions=arguments.conditions,
        engine_conditions=arguments.engine_conditions,
        refit=arguments.refit,
        size=(arguments.min_size, arguments.opt_size, arguments.max_size),
        batch=(1, *(arguments.batch or (arguments.opt_batch, arguments.max_batch))),
        capabilities=capabilities,
        fp32_modules=arguments.fp32_modules,
        images=arguments.images,
        workers=arguments.workers,
        force=arguments.force,
        explain=arguments.explain,
    )


def choose_targets(
    asked: Sequence[str] | None, precisions: Sequence[str] = PRECISIONS
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Choose the targets to build.

    Args:
        asked: names of targets, None for all that can be built here.
        precisions: precisions of the graphs.

    Returns:
        The targets, and for each that is left out of the default the reason.

    Raises:
        UsageError: a target is unknown, or one that was asked for cannot be built here.
    """
    for name in asked or ():
        if name not in TARGET_NAMES:
            raise unknown("target", name, TARGET_NAMES)
    reasons = {name: unavailable_reason(TARGETS[name]) for name in asked or TARGET_NAMES if name in TARGETS}
    if "openvino" in (asked or TARGET_NAMES):
        reasons["openvino"] = openvino_unavailable_reason(precisions)
    if asked:
        for name, reason in reasons.items():
            if reason:
                raise UsageError(f"target {name} cannot be built here: {reason}")
        return tuple(dict.fromkeys(asked)), {}
    left_out = {name: reason for name, reason in reasons.items() if reason}
    return tuple(name for name in TARGET_NAMES if name not in left_out), left_out


def _print(line: str) -> None:
    print(line, flush=True)


def _ignore(line: str) -> None:
    pass


if __name__ == "__main__":
    raise SystemExit(run_command(main, also=(ExportError, DODError)))
