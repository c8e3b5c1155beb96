"""Command-line options of the two stages."""

from __future__ import annotations

from typing import Any

from dod_runtime.console import Parser

from .arguments import training_parser
from .state import Schedule

__all__ = ["CLEAN_FRACTION", "STAGE_1_OPTIONS", "STAGE_2_OPTIONS", "W_LR_MULTIPLIER", "W_START", "parser"]

CLEAN_FRACTION = 0.1
"""Default fraction of samples that are not degraded, so that a model learns to preserve clean images."""
W_LR_MULTIPLIER = 3.0
"""Default of `--w-lr-multiplier`, for `mini`; the paper gives none, and `stages.stage_2` has 1."""
W_START = 0.2
"""Default of `--w-start`, for `mini`; the paper gives none, and `stages.stage_2` starts at 0."""
STAGE_1_OPTIONS = (
    "rec_weight",
    "perceptual_weight",
    "dmd_weight",
    "latent_weight",
    "vgg",
    "relative",
    "gradient_checkpointing",
    "tile_size",
)
"""Options of `stages.stage_1`, which its record lists."""
STAGE_2_OPTIONS = (
    "rec_weight",
    "ssim_weight",
    "w_lr_multiplier",
    "w_start",
    "decoder",
    "plain_weight",
    "decoder_lr_multiplier",
    "named",
    "relative",
    "tile_size",
)
"""Options of `stages.stage_2`, which its record lists."""


def parser(stage: int) -> Parser:
    """Return the parser of `dod-train stage1` or `dod-train stage2`.

    Args:
        stage: 1 or 2.

    Returns:
        The parser.
    """
    return _stage_1() if stage == 1 else _stage_2()


def _stage_1() -> Parser:
    parser = training_parser(
        "stage1",
        "Train stage 1: the adaptation of encoder and UNet to degraded images by parameter-efficient conditional LoRA "
        "(PLA). Default loss terms and weights follow the paper. Default preset, schedule and samples are for `mini`.",
        Schedule(steps=1000, batch_size=6, crop=128, learning_rate=1e-3),
    )
    loss = parser.add_argument_group("loss", "Weights of the terms of equation (11); 0 turns a term off.")
    _weight(loss, "rec", 1.0, "the reconstruction term (8)")
    _weight(loss, "perceptual", 2.0, "the perceptual term (9), which needs --vgg")
    _weight(loss, "dmd", 1.0, "the distribution matching term (10)")
    _weight(
        loss,
        "latent",
        0.0,
        "the squared error of the restored latent at three scales (values, 4 x 4 means, whole means), which the paper "
        "does not have; a base of short training needs it",
    )
    loss.add_argument(
        "--vgg",
        default="",
        metavar="FILE",
        help="VGG-16 weights in torchvision's layout, or `torchvision` to take them from that library "
        "(default: none; the perceptual term is off)",
    )
    _add_shared(parser, loss)
    parser.add_argument_group("memory").add_argument(
        "--gradient-checkpointing",
        action="store_true",
        help="recompute the UNet's activations in the backward pass, which saves memory and costs time (default: off)",
    )
    return parser


def _stage_2() -> Parser:
    parser = training_parser(
        "stage2",
        "Train stage 2: the detail modules (DEM) and, on request, the decoder of the base. Default loss terms and "
        "weights follow the paper. Default preset, schedule, samples and start of w are for `mini`.",
        Schedule(steps=1600, batch_size=8, crop=64, learning_rate=2e-3),
        continues=False,
    )
    loss = parser.add_argument_group("loss", "Weights of the terms of equation (13); 0 turns a term off.")
    _weight(loss, "rec", 1.0, "the reconstruction term (8)")
    _weight(loss, "ssim", 0.2, "the SSIM term (12)")
    samples = _add_shared(parser, loss)
    samples.add_argument(
        "--named",
        type=float,
        default=0.0,
        metavar="FRACTION",
        help="fraction of degraded images that are restored on their named condition path, that is with the modulation "
        "of their prototype, 0 to 1; more than 0 needs the prototypes of `dod-train calibrate` (default: %(default)s)",
    )
    detail = parser.add_argument_group("detail modules", "w is the learned weight of a detail module's output.")
    detail.add_argument(
        "--w-lr-multiplier",
        type=float,
        default=W_LR_MULTIPLIER,
        metavar="X",
        help="learning rate of w as a multiple of --learning-rate; the paper gives none (default: %(default)s)",
    )
    detail.add_argument(
        "--w-start",
        type=float,
        default=W_START,
        metavar="W",
        help="minimum absolute value of w before the first step; a smaller w, which is 0 in a new model, is set to it, "
        "because nothing else of a module learns while w is 0; 0 changes no w (default: %(default)s)",
    )
    decoder = parser.add_argument_group("decoder of the base")
    decoder.add_argument(
        "--decoder",
        choices=("frozen", "trained", "new"),
        default="frozen",
        help="keep the decoder, train it, or train it from new weights; the latter two rewrite the base "
        "(default: %(default)s)",
    )
    _weight(
        decoder,
        "plain",
        0.25,
        "a further reconstruction term (8), of a quarter of each batch decoded without detail modules, so that a "
        "trained decoder does not rely on them; without effect with --decoder frozen",
    )
    decoder.add_argument(
        "--decoder-lr-multiplier",
        type=float,
        default=1.0,
        metavar="X",
        help="learning rate of the decoder as a multiple of --learning-rate (default: %(default)s)",
    )
    return parser


def _weight(group: Any, name: str, default: float, term: str) -> None:
    group.add_argument(
        f"--{name}-weight",
        type=float,
        default=default,
        metavar="WEIGHT",
        help=f"weight of {term} (default: %(default)s)",
    )


def _add_shared(parser: Parser, loss: Any) -> Any:
    """Add the options that both stages have, and return the group "samples"."""
    loss.add_argument(
        "--relative",
        action="store_true",
        help="use the logarithm of each image's error in the reconstruction and latent terms, so that a degradation "
        "with large errors counts no more than others (default: off)",
    )
    samples = parser.add_argument_group("samples")
    samples.add_argument(
        "--tile-size",
        type=int,
        nargs="+",
        default=[],
        metavar="PX",
        help="sides in px of the random window that is restored, of which each batch draws one; the condition c still "
        "comes from the whole crop (default: restore the whole crop)",
    )
    samples.add_argument(
        "--clean-fraction",
        type=float,
        default=CLEAN_FRACTION,
        metavar="FRACTION",
        help="fraction of samples that are not degraded, 0 to 1 (default: %(default)s)",
    )
    return samples
