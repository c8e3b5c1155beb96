"""Checkpoint -> bundle: ONNX graphs, engines, condition values, and the proof that they compute what PyTorch computes.

    python export/build_engines.py [CHECKPOINT] --out build/mini --targets onnxruntime openvino tensorrt_rtx \\
           --precision fp32 fp16 --conditions haze rain --min 256 --opt 512 --max 1024 --batch 1 4 \\
           --compute-capabilities 8.6 8.9 12.0
"""

from __future__ import annotations

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

CAPABILITIES = ("8.6", "8.9", "12.0")
TARGET_NAMES = ("onnxruntime", "openvino", *TARGETS)
PRECISIONS = ("fp32", "fp16")
GATED = ("bf16", "int8")
"""Precisions that are measured and then refused with the figure: no graphs are written in them."""


PRECISION_HELP = "fp32, fp16 or both (default); engines: fp16 where named; bf16 and int8 are measured and refused"
REFIT_HELP = "one merged UNet engine for all conditions, its weights exchanged at a switch; built on the GPU it is for"
SAMPLES_HELP = (
    "folder of images that parity and precision are measured on; one whose name begins with a condition checks "
    "the path of that condition (default docs/samples)"
)
FORCE_HELP = "replace a bundle of another model, or one with conditions that this build leaves out"
FP32_MODULES_HELP = (
    "modules kept in float32 in fp16; default: the smallest set found by measurement; none given: none kept"
)


def main(argv: Sequence[str]) -> int:
    """Build the bundle and return 0. ParityError where a figure missed its budget: then no bundle is written."""
    arguments = parser().parse_args(argv)
    for name in arguments.precision:
        if name not in (*PRECISIONS, *GATED):
            raise unknown("precision", name, (*PRECISIONS, *GATED))
    if arguments.workers < 1:
        raise UsageError(f"--workers must be at least 1, not {arguments.workers}")
    targets, left_out = choose_targets(arguments.targets, arguments.precision)
    if importlib.util.find_spec("onnxruntime") is None:
        raise UsageError("every bundle is proven with ONNX Runtime, which is not installed: pip install onnxruntime")
    fp16 = "fp16" in arguments.precision
    capabilities, asked = (), arguments.compute_capabilities
    if arguments.refit:
        if arguments.engine_conditions is not None:
            raise UsageError("--refit builds one merged UNet for all conditions: leave --engine-conditions out")
        capabilities = validate_refit(targets, asked, fp16=fp16)
    elif "tensorrt_rtx" in targets:
        capabilities = validate_capabilities(CAPABILITIES if asked is None else asked, fp16=fp16)
    for name, reason in left_out.items():
        print(f"target {name} is left out: {reason}")

    gc.disable()  # hundreds of thousands of objects that stay: not to be searched now, later, or when the process ends
    from export.pipeline import Build, Options  # torch and diffusers take seconds: wrong arguments are told before

    gc.freeze()
    gc.enable()

    options = Options(
        checkpoint=arguments.checkpoint,
        base=arguments.base,
        ddpm=arguments.ddpm,
        out=arguments.out,
        targets=targets,
        precisions=tuple(name for name in PRECISIONS if name in arguments.precision),
        gate=tuple(name for name in GATED if name in arguments.precision),
        conditions=arguments.conditions,
        engine_conditions=arguments.engine_conditions,
        refit=arguments.refit,
        size=(arguments.min, arguments.opt, arguments.max),
        batch=(1, *arguments.batch),
        capabilities=capabilities,
        fp32_modules=arguments.fp32_modules,
        samples=arguments.samples,
        workers=arguments.workers,
        force=arguments.force,
    )
    if arguments.explain and not options.precisions:
        raise UsageError(f"--explain needs a precision that is written: {' or '.join(PRECISIONS)}")
    build = Build(options, explaining=arguments.explain)
    if arguments.explain:
        return build.explain()
    return build.run()


def parser() -> Parser:
    """The command's options; every one has the shipped model's value as its default."""
    about = "Checkpoint -> bundle: ONNX graphs, engines, condition values, and the proof that they compute the same."
    parser = Parser(prog="export/build_engines.py", description=about)
    add = parser.add_argument
    add("checkpoint", nargs="?", default="mini", help="checkpoint folder, or a preset's name or folder (default mini)")
    add("--out", type=Path, default=Path("build/mini"), help="the bundle to write (default build/mini)")
    add("--base", help="the frozen Stable Diffusion base, where it is not where the preset says")
    add("--ddpm", help="the frozen DDPM, likewise")
    add(
        "--targets",
        nargs="+",
        metavar="TARGET",
        help=f"of {', '.join(TARGET_NAMES)}; default: all that can be built here",
    )
    add("--precision", nargs="+", default=list(PRECISIONS), help=PRECISION_HELP)
    add("--conditions", nargs="+", metavar="NAME", help="merged paths to build; default: all of the checkpoint")
    add("--engine-conditions", nargs="*", metavar="NAME", help="of them, which get an engine; default: all")
    add("--min", type=int, default=256, help="smallest side in pixels (256)")
    add("--opt", type=int, default=512, help="side that engines are optimised for (512)")
    add("--max", type=int, default=1024, help="largest side in pixels (1024)")
    add("--batch", type=int, nargs=2, default=(1, 4), metavar=("OPT", "MAX"), help="usual and largest batch (1 4)")
    add("--refit", action="store_true", help=REFIT_HELP)
    gpus = f"GPUs of tensorrt_rtx (default {' '.join(CAPABILITIES)})"
    add("--compute-capabilities", nargs="+", metavar="X.Y", help=gpus)
    add("--fp32-modules", nargs="*", metavar="MODULE", help=FP32_MODULES_HELP)
    add("--samples", type=Path, default=None, help=SAMPLES_HELP)
    add("--workers", type=int, default=2, help="graphs traced, and engines built, at once (2)")
    add("--force", action="store_true", help=FORCE_HELP)
    add("--explain", action="store_true", help="say for each file why it is fresh or stale, and build nothing")
    return parser


def choose_targets(
    asked: Sequence[str] | None, precisions: Sequence[str] = PRECISIONS
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The targets to build, and those of the default that cannot be built here with the reason.

    UsageError where one is unknown, or was asked for by name and cannot be built here.
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


if __name__ == "__main__":
    raise SystemExit(run_command(main, also=(ExportError, DODError)))
